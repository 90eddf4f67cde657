package org.bridgeface.core;

/** How alike two embeddings are; a higher score is more alike. */
public final class Matcher {
    private Matcher() {}

    /** The cosine, or minus the Euclidean distance. */
    public static double score(String metric, float[] a, float[] b) {
        if (a.length != b.length) {
            throw new IllegalArgumentException(a.length + " and " + b.length + " numbers");
        }
        double dot = 0, aa = 0, bb = 0, squared = 0;
        for (int i = 0; i < a.length; i++) {
            dot += (double) a[i] * b[i];
            aa += (double) a[i] * a[i];
            bb += (double) b[i] * b[i];
            squared += ((double) a[i] - b[i]) * ((double) a[i] - b[i]);
        }
        if (metric.equals("euclidean")) {
            return -Math.sqrt(squared);
        }
        return dot / (Math.max(Math.sqrt(aa), 1e-12) * Math.max(Math.sqrt(bb), 1e-12));
    }
}
