package org.bridgeface.core;

import java.nio.ByteBuffer;

/** From the camera's YUV planes to an upright RGB image. */
public final class Frames {
    private Frames() {}

    /** One plane of android.media.Image: its bytes, and how far apart rows and pixels lie. */
    public static final class Plane {
        final ByteBuffer bytes;
        final int row;
        final int pixel;

        public Plane(ByteBuffer bytes, int row, int pixel) {
            this.bytes = bytes;
            this.row = row;
            this.pixel = pixel;
        }

        int at(int x, int y) {
            return bytes.get(y * row + x * pixel) & 255;
        }
    }

    /** YUV 4:2:0 (BT.601, full range, as Android's cameras give), turned clockwise by 0, 90, 180 or 270 degrees. */
    public static Rgb upright(int width, int height, Plane luma, Plane blue, Plane red, int degrees) {
        boolean sideways = degrees % 180 != 0;
        int wide = sideways ? height : width, high = sideways ? width : height;
        byte[] out = new byte[wide * high * 3];
        for (int y = 0; y < height; y++) {
            for (int x = 0; x < width; x++) {
                int to;
                switch (degrees) {
                    case 0:
                        to = y * wide + x;
                        break;
                    case 90:
                        to = x * wide + height - 1 - y;
                        break;
                    case 180:
                        to = (height - 1 - y) * wide + width - 1 - x;
                        break;
                    case 270:
                        to = (width - 1 - x) * wide + y;
                        break;
                    default:
                        throw new IllegalArgumentException(degrees + " degrees");
                }
                int l = luma.at(x, y), b = blue.at(x / 2, y / 2) - 128, r = red.at(x / 2, y / 2) - 128;
                // 1.402, 0.344136, 0.714136 and 1.772 in 65536ths.
                out[3 * to] = clamp(l + (91881 * r + 32768 >> 16));
                out[3 * to + 1] = clamp(l - (22554 * b + 46802 * r + 32768 >> 16));
                out[3 * to + 2] = clamp(l + (116130 * b + 32768 >> 16));
            }
        }
        return new Rgb(wide, high, out);
    }

    private static byte clamp(int level) {
        return (byte) (level < 0 ? 0 : level > 255 ? 255 : level);
    }

    /** Degrees to turn a frame clockwise; display: 0, 90, 180 or 270, how far the screen is turned from its own up. */
    public static int turn(int sensor, int display, boolean front) {
        return ((front ? sensor + display : sensor - display) % 360 + 360) % 360;
    }
}
