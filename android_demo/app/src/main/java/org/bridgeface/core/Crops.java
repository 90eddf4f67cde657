package org.bridgeface.core;

/** From a photo and five points to what the network sees, as the Python code cuts it. */
public final class Crops {
    /** The one way of reducing the aligned crop that is built here; another one would give other scores. */
    public static final String RESAMPLING =
            "bilinear to the template, then bicubic with antialias to the input, both in uint8";

    public static final int LOOSE_PX = 128;

    // Left eye, right eye, nose tip, left and right mouth corner, as seen in the image.
    private static final double[][] ARCFACE = {
        {38.2946, 51.6963}, {73.5318, 51.5014}, {56.0252, 71.7366}, {41.5493, 92.3655}, {70.7299, 92.2041}
    };
    private static final double[][] DLIB = {{46.7, 44.9}, {99.2, 43.8}, {74.0, 76.3}, {51.0, 100.5}, {96.3, 100.0}};
    private static final double[][] LOOSE = loose();

    private Crops() {}

    /** A photo's face, upright in 128 x 128 px, and where its points lie there. */
    public static final class Loose {
        public final Rgb image;
        public final double[][] landmarks;

        Loose(Rgb image, double[][] landmarks) {
            this.image = image;
            this.landmarks = landmarks;
        }
    }

    public static Loose loose(Rgb photo, double[][] landmarks) throws DemoException {
        double[] matrix = Similarity.fit(landmarks, LOOSE);
        double[][] moved = new double[landmarks.length][];
        for (int i = 0; i < landmarks.length; i++) {
            double[] point = Similarity.apply(matrix, landmarks[i]);
            // Landmarks are kept in single precision at rest.
            moved[i] = new double[] {(float) point[0], (float) point[1]};
        }
        return new Loose(Resample.warp(photo, matrix, LOOSE_PX), moved);
    }

    /** The aligned crop of a template, at `px` pixels. */
    public static Rgb aligned(Loose face, String template, int px) throws DemoException {
        int base = base(template);
        double scale = (double) px / base;
        double[][] points = template.equals("arcface") ? ARCFACE : DLIB;
        double[][] target = new double[points.length][];
        for (int i = 0; i < points.length; i++) {
            target[i] = new double[] {(points[i][0] + 0.5) * scale - 0.5, (points[i][1] + 0.5) * scale - 0.5};
        }
        return Resample.warp(face.image, Similarity.fit(face.landmarks, target), px);
    }

    /** Side of a template's own crop; a DemoException where it is unknown. */
    public static int base(String template) throws DemoException {
        if (template.equals("arcface")) {
            return 112;
        }
        if (template.equals("dlib")) {
            return 150;
        }
        throw new DemoException("The model wants a crop called '" + template + "', which this app cannot cut.");
    }

    /** What the network sees of the aligned crop after it was reduced to `px` first; px = inputPx adds nothing. */
    public static Rgb seen(Rgb aligned, int px, int inputPx) {
        return Resample.cubic(Resample.cubic(aligned, px), inputPx);
    }

    /** The ArcFace template enlarged to an eye distance of 36 px, its centroid at (64.03, 78.24). */
    private static double[][] loose() {
        double x = 0, y = 0;
        for (double[] point : ARCFACE) {
            x += point[0] / 5;
            y += point[1] / 5;
        }
        double[][] points = new double[5][];
        for (int i = 0; i < 5; i++) {
            double scale = 36 / 35.237;
            points[i] = new double[] {(ARCFACE[i][0] - x) * scale + 64.03, (ARCFACE[i][1] - y) * scale + 78.24};
        }
        return points;
    }
}
