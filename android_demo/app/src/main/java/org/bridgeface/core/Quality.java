package org.bridgeface.core;

/** Is this face good enough to enrol or to judge by? Three measures, each with the hint it leads to. */
public final class Quality {
    /** Mean grey level of the aligned crop below which it is too dark. */
    public static final double DARK = 50;

    /** Sharpness of the aligned crop below which it is too blurred; see `sharpness`. */
    public static final double BLURRED = 0.02;

    private static final int SIDE = 48;
    private static final double TEMPLATE_EYES = 35.237;

    /** Pixels of the camera's picture that the aligned face covers. */
    public final double facePx;

    public final double brightness;
    public final double sharpness;
    private final int neededPx;

    private Quality(double facePx, double brightness, double sharpness, int neededPx) {
        this.facePx = facePx;
        this.brightness = brightness;
        this.sharpness = sharpness;
        this.neededPx = neededPx;
    }

    /** eyeDistance: in the picture; aligned: the crop; neededPx: side of what the network sees. */
    public static Quality of(double eyeDistance, Rgb aligned, int neededPx) {
        double[] grey = grey(aligned);
        double sum = 0;
        for (double level : grey) {
            sum += level;
        }
        return new Quality(eyeDistance * 112 / TEMPLATE_EYES, sum / grey.length, sharpness(aligned), neededPx);
    }

    /** One sentence for the person before the camera, or null where the face is good. */
    public String hint() {
        if (facePx < neededPx) {
            return String.format("Too small: %.0f px, %d are needed. Come nearer.", facePx, neededPx);
        }
        if (brightness < DARK) {
            return "Too dark: turn towards the light.";
        }
        return sharpness < BLURRED ? "Too blurred: hold still, or wipe the lens." : null;
    }

    /** Variance of the Laplacian over the variance, at 48 px: contrast cancels out, and camera noise is averaged. */
    static double sharpness(Rgb aligned) {
        double[] grey = grey(Resample.area(aligned, Math.min(SIDE, aligned.width), Math.min(SIDE, aligned.height)));
        int side = (int) Math.rint(Math.sqrt(grey.length));
        double[] laplacian = new double[(side - 2) * (side - 2)], inner = new double[laplacian.length];
        for (int y = 1, at = 0; y < side - 1; y++) {
            for (int x = 1; x < side - 1; x++, at++) {
                int i = y * side + x;
                laplacian[at] = grey[i - 1] + grey[i + 1] + grey[i - side] + grey[i + side] - 4 * grey[i];
                inner[at] = grey[i];
            }
        }
        double spread = variance(inner);
        return spread < 1e-9 ? 0 : variance(laplacian) / spread;
    }

    private static double variance(double[] values) {
        double sum = 0, squares = 0;
        for (double value : values) {
            sum += value;
            squares += value * value;
        }
        double mean = sum / values.length;
        return squares / values.length - mean * mean;
    }

    private static double[] grey(Rgb image) {
        double[] grey = new double[image.width * image.height];
        for (int i = 0; i < grey.length; i++) {
            int at = 3 * i;
            grey[i] = 0.299 * (image.data[at] & 255) + 0.587 * (image.data[at + 1] & 255)
                    + 0.114 * (image.data[at + 2] & 255);
        }
        return grey;
    }
}
