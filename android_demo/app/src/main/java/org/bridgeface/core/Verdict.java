package org.bridgeface.core;

import java.util.Locale;

/** The words for a score: who, how alike, and the decision at a false match rate of the sidecar. */
public final class Verdict {
    public final Boolean same;
    public final String text;

    private Verdict(Boolean same, String text) {
        this.same = same;
        this.text = text;
    }

    /** match: null where nobody is enrolled; fmr: a key of the sidecar's thresholds. */
    public static Verdict of(People.Match match, Sidecar sidecar, String fmr) {
        if (match == null) {
            return new Verdict(null, "Nobody is enrolled yet: enrol someone first.");
        }
        Double threshold = sidecar.thresholds.get(fmr);
        if (threshold == null) {
            String why = sidecar.measured.get(fmr);
            String reason = why == null ? "the sidecar has none at a false match rate of " + fmr : why;
            return new Verdict(
                    null, String.format(Locale.US, "%s: score %.3f. No decision: %s.", match.name, match.score, reason));
        }
        boolean same = match.score >= threshold;
        return new Verdict(
                same,
                String.format(
                        Locale.US,
                        "%s %s: score %.3f, threshold %.3f at a false match rate of %s for each enrolled face "
                                + "compared: the more there are, the more often a stranger passes.",
                        same ? "Same person as" : "Not", match.name, match.score, threshold, fmr));
    }
}
