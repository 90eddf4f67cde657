package org.bridgeface.core;

/** What stands between the person and the preview, and the words for it. */
public final class CameraGate {
    public enum State {
        OPEN("", ""),
        ASK("This demo needs the camera to see a face. Nothing it sees leaves the phone.", "Allow the camera"),
        DENIED("The camera is denied to this app. Allow it in the phone's settings, then come back.", "Open settings"),
        ABSENT("This device has no camera that can be used.", ""),
        LOST("The camera was taken by another app or was switched off. Close that app and try again.", "Try again");

        public final String message;
        public final String button;

        State(String message, String button) {
            this.message = message;
            this.button = button;
        }
    }

    private CameraGate() {}

    /** granted: the permission is there; asked: it was asked for before; explain: Android would still show its dialog. */
    public static State state(boolean granted, boolean asked, boolean explain, int cameras, boolean lost) {
        if (!granted) {
            return asked && !explain ? State.DENIED : State.ASK;
        }
        if (cameras < 1) {
            return State.ABSENT;
        }
        return lost ? State.LOST : State.OPEN;
    }
}
