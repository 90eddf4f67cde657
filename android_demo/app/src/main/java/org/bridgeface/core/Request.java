package org.bridgeface.core;

/**
 * What the person asked for and is still waiting for. Android destroys and rebuilds the screen when the phone is
 * turned: the request is written as text and taken up again.
 */
public final class Request {
    public enum Kind {
        NONE,
        ENROL,
        VERIFY
    }

    /** Frames that may pass without a good face before the person is told so: about six seconds. */
    public static final int FRAMES = 90;

    public static final Request NONE = new Request(Kind.NONE, null, 0);

    public final Kind kind;

    /** Who is enrolled, or is claimed to be there; null with VERIFY: anyone. */
    public final String name;

    private final int left;

    private Request(Kind kind, String name, int left) {
        this.kind = kind;
        this.name = name;
        this.left = left;
    }

    public static Request enrol(String name) throws DemoException {
        return new Request(Kind.ENROL, People.checkedName(name), FRAMES);
    }

    public static Request verify(String name) {
        return new Request(Kind.VERIFY, name, FRAMES);
    }

    /** The same after one more frame without a good face; NONE when time is up. */
    public Request waited() {
        return left <= 1 ? NONE : new Request(kind, name, left - 1);
    }

    public String write() {
        return kind + "\n" + left + "\n" + (name == null ? "" : name);
    }

    /** What `write` gave; anything else is no request. */
    public static Request read(String text) {
        String[] parts = text == null ? new String[0] : text.split("\n", 3);
        if (parts.length != 3) {
            return NONE;
        }
        try {
            Kind kind = Kind.valueOf(parts[0]);
            int left = Integer.parseInt(parts[1]);
            boolean right = kind != Kind.NONE && left >= 1 && left <= FRAMES && (kind == Kind.VERIFY || !parts[2].isEmpty());
            return right ? new Request(kind, parts[2].isEmpty() ? null : parts[2], left) : NONE;
        } catch (IllegalArgumentException unknown) {
            // An older version of the app wrote it: the person asks again.
            return NONE;
        }
    }
}
