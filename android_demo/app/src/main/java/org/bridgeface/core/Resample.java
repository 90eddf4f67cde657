package org.bridgeface.core;

/** The three ways that images are resampled: warped bilinearly, averaged by area, reduced by a widened cubic. */
public final class Resample {
    private Resample() {}

    /**
     * image seen through a 2 x 3 matrix (from the image to the result, pixel centres at integers), bilinear, border
     * replicated. A reduction by more than two is averaged by area first, as bilinear sampling alone would alias.
     */
    public static Rgb warp(Rgb image, double[] matrix, int size) {
        double[] m = matrix.clone();
        double scale = Math.hypot(m[0], m[3]);
        if (scale < 0.5) {
            int width = Math.max(1, (int) Math.rint(image.width * scale * 2));
            int height = Math.max(1, (int) Math.rint(image.height * scale * 2));
            double rx = (double) image.width / width, ry = (double) image.height / height;
            image = area(image, width, height);
            // The first pixel's centre lies at (ratio - 1) / 2 of the image: without that, half a pixel is lost.
            m[2] += m[0] * (rx - 1) / 2 + m[1] * (ry - 1) / 2;
            m[5] += m[3] * (rx - 1) / 2 + m[4] * (ry - 1) / 2;
            m[0] *= rx;
            m[3] *= rx;
            m[1] *= ry;
            m[4] *= ry;
        }
        double[] back = Similarity.invert(m);
        byte[] out = new byte[size * size * 3];
        for (int y = 0, at = 0; y < size; y++) {
            for (int x = 0; x < size; x++, at += 3) {
                double u = back[0] * x + back[1] * y + back[2], v = back[3] * x + back[4] * y + back[5];
                int x0 = (int) Math.floor(u), y0 = (int) Math.floor(v);
                double fx = u - x0, fy = v - y0;
                int left = Rgb.clamp(x0, image.width) * 3, right = Rgb.clamp(x0 + 1, image.width) * 3;
                int top = Rgb.clamp(y0, image.height) * image.width * 3;
                int bottom = Rgb.clamp(y0 + 1, image.height) * image.width * 3;
                for (int c = 0; c < 3; c++) {
                    double upper = (image.data[top + left + c] & 255) * (1 - fx) + (image.data[top + right + c] & 255) * fx;
                    double lower =
                            (image.data[bottom + left + c] & 255) * (1 - fx) + (image.data[bottom + right + c] & 255) * fx;
                    out[at + c] = Rgb.level(upper * (1 - fy) + lower * fy);
                }
            }
        }
        return new Rgb(size, size, out);
    }

    /** Reduced by averaging: each pixel is the mean of the area it covers. */
    public static Rgb area(Rgb image, int width, int height) {
        return separable(image, areaWeights(image.width, width), areaWeights(image.height, height));
    }

    /** A square reduced or enlarged by Keys' cubic (a = -0.5), widened by the scale where it becomes smaller. */
    public static Rgb cubic(Rgb image, int size) {
        if (image.width == size && image.height == size) {
            return image;
        }
        return separable(image, cubicWeights(image.width, size), cubicWeights(image.height, size));
    }

    private static double[][] areaWeights(int source, int target) {
        double ratio = (double) source / target;
        double[][] weights = new double[target][source];
        for (int i = 0; i < target; i++) {
            double from = i * ratio, to = (i + 1) * ratio;
            for (int j = (int) from; j < Math.min(source, Math.ceil(to)); j++) {
                weights[i][j] = Math.max(0, Math.min(to, j + 1) - Math.max(from, j));
            }
            normalise(weights[i]);
        }
        return weights;
    }

    private static double[][] cubicWeights(int source, int target) {
        double scale = (double) source / target, wide = Math.max(scale, 1);
        double[][] weights = new double[target][source];
        for (int i = 0; i < target; i++) {
            double centre = (i + 0.5) * scale;
            for (int j = 0; j < source; j++) {
                double x = Math.abs((j + 0.5 - centre) / wide);
                weights[i][j] =
                        x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
            }
            normalise(weights[i]);
        }
        return weights;
    }

    private static void normalise(double[] weights) {
        double sum = 0;
        for (double weight : weights) {
            sum += weight;
        }
        for (int i = 0; i < weights.length; i++) {
            weights[i] /= sum;
        }
    }

    private static Rgb separable(Rgb image, double[][] across, double[][] down) {
        int width = across.length, height = down.length;
        double[] narrow = new double[image.height * width * 3];
        for (int x = 0; x < width; x++) {
            int from = first(across[x]), to = end(across[x]);
            for (int y = 0; y < image.height; y++) {
                for (int c = 0; c < 3; c++) {
                    double sum = 0;
                    for (int j = from; j < to; j++) {
                        sum += across[x][j] * (image.data[(y * image.width + j) * 3 + c] & 255);
                    }
                    narrow[(y * width + x) * 3 + c] = sum;
                }
            }
        }
        byte[] out = new byte[height * width * 3];
        int row = width * 3;
        for (int y = 0; y < height; y++) {
            int from = first(down[y]), to = end(down[y]);
            for (int i = 0; i < row; i++) {
                double sum = 0;
                for (int j = from; j < to; j++) {
                    sum += down[y][j] * narrow[j * row + i];
                }
                out[y * row + i] = Rgb.level(sum);
            }
        }
        return new Rgb(width, height, out);
    }

    private static int first(double[] weights) {
        int i = 0;
        while (weights[i] == 0) {
            i++;
        }
        return i;
    }

    private static int end(double[] weights) {
        int i = weights.length;
        while (weights[i - 1] == 0) {
            i--;
        }
        return i;
    }
}
