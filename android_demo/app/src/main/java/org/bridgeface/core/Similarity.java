package org.bridgeface.core;

/** Least-squares similarity (rotation, uniform scale, shift) between point sets; NaN marks an unknown point. */
public final class Similarity {
    private Similarity() {}

    /** The 2 x 3 matrix, row by row, that takes source points nearest to target points. Two known ones are needed. */
    public static double[] fit(double[][] source, double[][] target) throws DemoException {
        double sx = 0, sy = 0, tx = 0, ty = 0;
        int known = 0;
        for (int i = 0; i < source.length; i++) {
            if (isKnown(source[i]) && isKnown(target[i])) {
                sx += source[i][0];
                sy += source[i][1];
                tx += target[i][0];
                ty += target[i][1];
                known++;
            }
        }
        if (known < 2) {
            throw new DemoException("Too little of the face is visible; look into the camera.");
        }
        sx /= known;
        sy /= known;
        tx /= known;
        ty /= known;
        double along = 0, across = 0, spread = 0;
        for (int i = 0; i < source.length; i++) {
            if (isKnown(source[i]) && isKnown(target[i])) {
                double x = source[i][0] - sx, y = source[i][1] - sy;
                double u = target[i][0] - tx, v = target[i][1] - ty;
                along += x * u + y * v;
                across += x * v - y * u;
                spread += x * x + y * y;
            }
        }
        if (!(spread > 0)) {
            throw new DemoException("The face is too small to align; come nearer.");
        }
        double a = along / spread, b = across / spread;
        return new double[] {a, -b, tx - a * sx + b * sy, b, a, ty - b * sx - a * sy};
    }

    public static double[] apply(double[] m, double[] point) {
        return new double[] {
            m[0] * point[0] + m[1] * point[1] + m[2], m[3] * point[0] + m[4] * point[1] + m[5]
        };
    }

    /** The matrix of the way back. */
    public static double[] invert(double[] m) {
        double determinant = m[0] * m[4] - m[1] * m[3];
        double a = m[4] / determinant, b = -m[1] / determinant;
        double c = -m[3] / determinant, d = m[0] / determinant;
        return new double[] {a, b, -(a * m[2] + b * m[5]), c, d, -(c * m[2] + d * m[5])};
    }

    static boolean isKnown(double[] point) {
        return !Double.isNaN(point[0]) && !Double.isNaN(point[1]);
    }
}
