package org.bridgeface.core;

/** An image: R, G, B bytes, row by row. The array is the image's own and is not to be changed. */
public final class Rgb {
    public final int width;
    public final int height;
    public final byte[] data;

    public Rgb(int width, int height, byte[] data) {
        if (width < 1 || height < 1 || data.length != width * height * 3) {
            throw new IllegalArgumentException(width + "x" + height + " image of " + data.length + " bytes");
        }
        this.width = width;
        this.height = height;
        this.data = data;
    }

    /** Pixels as android.graphics.Bitmap takes them, 0xFFRRGGBB; mirrored shows them as a mirror would. */
    public int[] argb(boolean mirrored) {
        int[] pixels = new int[width * height];
        for (int y = 0, at = 0; y < height; y++) {
            for (int x = 0; x < width; x++, at += 3) {
                int colour = (data[at] & 255) << 16 | (data[at + 1] & 255) << 8 | data[at + 2] & 255;
                pixels[y * width + (mirrored ? width - 1 - x : x)] = 0xFF000000 | colour;
            }
        }
        return pixels;
    }

    public static Rgb fromArgb(int width, int height, int[] pixels) {
        byte[] data = new byte[width * height * 3];
        for (int i = 0, at = 0; i < width * height; i++, at += 3) {
            data[at] = (byte) (pixels[i] >> 16);
            data[at + 1] = (byte) (pixels[i] >> 8);
            data[at + 2] = (byte) pixels[i];
        }
        return new Rgb(width, height, data);
    }

    /** The image within a border of its outermost pixels: detectors miss faces that fill the picture. */
    public Rgb bordered(int border) {
        int wide = width + 2 * border;
        int high = height + 2 * border;
        byte[] out = new byte[wide * high * 3];
        for (int y = 0, to = 0; y < high; y++) {
            int row = clamp(y - border, height) * width;
            for (int x = 0; x < wide; x++, to += 3) {
                System.arraycopy(data, (row + clamp(x - border, width)) * 3, out, to, 3);
            }
        }
        return new Rgb(wide, high, out);
    }

    static int clamp(int value, int size) {
        return value < 0 ? 0 : value >= size ? size - 1 : value;
    }

    /** Nearest grey level of a value in [0, 255] or beside it; a half goes to the even one, as in numpy. */
    static byte level(double value) {
        return (byte) (int) Math.max(0, Math.min(255, Math.rint(value)));
    }
}
