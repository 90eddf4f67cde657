package org.bridgeface.core;

import java.io.Closeable;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Comparator;
import java.util.List;

/**
 * Faces of a photo by MediaPipe's short-range BlazeFace: 896 anchors, each with a score, a box and six points, of which
 * the eyes, the nose tip and the middle of the mouth are used. Works best within two metres of the camera.
 */
public final class FaceFinder implements Closeable {
    /** Of face_detection_short_range.tflite in the npm package that the build script names. */
    public static final String SHA256 = "3bc182eb9f33925d9e58b5c8d59308a760f4adea8f282370e428c51212c26633";

    private static final int SIDE = 128;
    private static final int ANCHORS = 896;
    private static final int VALUES = 16;
    private static final double LEAST_SCORE = 0.5;
    private static final double SAME_FACE = 0.3;

    /**
     * Where the five points of the template lie from the finder's own (the mouth's middle for both corners), in eye
     * distances along and across the line of the eyes: medians over 1,199 faces, made symmetric.
     */
    private static final double[][] OFFSETS = {
        {0.027, -0.019}, {-0.027, -0.019}, {0, -0.086}, {-0.419, -0.140}, {0.419, -0.140}
    };

    private final Network network;
    private final double[][] centres = centres();
    private final byte[] input = new byte[SIDE * SIDE * 3 * 4];
    private final byte[] values = new byte[ANCHORS * VALUES * 4];
    private final byte[] scores = new byte[ANCHORS * 4];

    /** A face: box (left, top, right, bottom) and five points in pixels. */
    public static final class Face {
        public final double score;
        public final double[] box;
        public final double[][] landmarks;

        Face(double score, double[] box, double[][] landmarks) {
            this.score = score;
            this.box = box;
            this.landmarks = landmarks;
        }

        public double eyeDistance() {
            return Math.hypot(landmarks[1][0] - landmarks[0][0], landmarks[1][1] - landmarks[0][1]);
        }

        public double size() {
            return (box[2] - box[0]) * (box[3] - box[1]);
        }
    }

    public FaceFinder(byte[] model, int threads) throws DemoException {
        if (!Sidecar.digest(model).equals(SHA256)) {
            throw new DemoException("The face finder in this app is damaged: install the app again.");
        }
        network = new Network(model, threads);
    }

    /** The largest face, or null. A face that fills the picture is looked for a second time within a border. */
    public Face largest(Rgb photo) throws DemoException {
        List<Face> faces = find(photo);
        double border = 0;
        if (faces.isEmpty()) {
            int width = Math.max(photo.width, photo.height) / 2;
            faces = find(photo.bordered(width));
            border = width;
        }
        Face best = null;
        for (Face face : faces) {
            best = best == null || face.size() > best.size() ? face : best;
        }
        return best == null ? null : moved(best, -border);
    }

    /** All faces, the surest first. */
    public synchronized List<Face> find(Rgb photo) throws DemoException {
        double scale = (double) SIDE / Math.max(photo.width, photo.height);
        int width = Math.max(1, (int) Math.rint(photo.width * scale));
        int height = Math.max(1, (int) Math.rint(photo.height * scale));
        int left = (SIDE - width) / 2, top = (SIDE - height) / 2;
        Rgb small = Resample.area(photo, width, height);
        ByteBuffer floats = ByteBuffer.wrap(input).order(ByteOrder.LITTLE_ENDIAN);
        for (int y = 0; y < SIDE; y++) {
            for (int x = 0; x < SIDE; x++) {
                boolean inside = x >= left && x < left + width && y >= top && y < top + height;
                int at = ((y - top) * width + x - left) * 3;
                for (int c = 0; c < 3; c++) {
                    floats.putFloat(inside ? (small.data[at + c] & 255) / 127.5f - 1 : -1);
                }
            }
        }
        network.run(input, values, scores);
        List<Face> found = new ArrayList<Face>();
        ByteBuffer raw = ByteBuffer.wrap(values).order(ByteOrder.LITTLE_ENDIAN);
        ByteBuffer sure = ByteBuffer.wrap(scores).order(ByteOrder.LITTLE_ENDIAN);
        for (int i = 0; i < ANCHORS; i++) {
            double score = 1 / (1 + Math.exp(-sure.getFloat(i * 4)));
            if (score >= LEAST_SCORE) {
                // Padding first, then the scale: pixels of the photo.
                double[] p = new double[VALUES];
                for (int k = 0; k < VALUES; k++) {
                    boolean size = k == 2 || k == 3;
                    double value = raw.getFloat((i * VALUES + k) * 4) + (size ? 0 : centres[i][k % 2] * SIDE);
                    p[k] = (size ? value : value - (k % 2 == 0 ? left : top)) * photo.width / width;
                }
                found.add(face(score, p));
            }
        }
        return merged(found);
    }

    private static Face face(double score, double[] p) {
        double[] one = {p[4], p[5]}, two = {p[6], p[7]};
        boolean order = one[0] <= two[0];
        double[] mouth = {p[10], p[11]};
        double[][] points = {order ? one : two, order ? two : one, {p[8], p[9]}, mouth, mouth};
        double[] box = {p[0] - p[2] / 2, p[1] - p[3] / 2, p[0] + p[2] / 2, p[1] + p[3] / 2};
        return new Face(score, box, points);
    }

    /** Boxes of one face become one: the mean of those that overlap the surest, weighted by their scores. */
    private static List<Face> merged(List<Face> found) {
        List<Face> rest = new ArrayList<Face>(found), faces = new ArrayList<Face>();
        Collections.sort(rest, new Comparator<Face>() {
            @Override
            public int compare(Face a, Face b) {
                return Double.compare(b.score, a.score);
            }
        });
        while (!rest.isEmpty()) {
            Face best = rest.get(0);
            List<Face> others = new ArrayList<Face>();
            double[] box = new double[4];
            double[][] points = new double[5][2];
            double weight = 0;
            for (Face face : rest) {
                if (face != best && overlap(face.box, best.box) <= SAME_FACE) {
                    others.add(face);
                    continue;
                }
                weight += face.score;
                for (int i = 0; i < 4; i++) {
                    box[i] += face.score * face.box[i];
                }
                for (int i = 0; i < 5; i++) {
                    points[i][0] += face.score * face.landmarks[i][0];
                    points[i][1] += face.score * face.landmarks[i][1];
                }
            }
            for (int i = 0; i < 4; i++) {
                box[i] /= weight;
            }
            for (double[] point : points) {
                point[0] /= weight;
                point[1] /= weight;
            }
            faces.add(new Face(best.score, box, placed(points)));
            rest = others;
        }
        return faces;
    }

    /** The finder's points moved to where the template's are. */
    private static double[][] placed(double[][] points) {
        double x = points[1][0] - points[0][0], y = points[1][1] - points[0][1];
        double[][] out = new double[5][];
        for (int i = 0; i < 5; i++) {
            double along = OFFSETS[i][0], across = OFFSETS[i][1];
            out[i] = new double[] {points[i][0] + along * x - across * y, points[i][1] + along * y + across * x};
        }
        return out;
    }

    private static double overlap(double[] a, double[] b) {
        double width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
        double height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
        double both = Math.max(0, width) * Math.max(0, height);
        double all = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both;
        return all > 0 ? both / all : 0;
    }

    private static Face moved(Face face, double by) {
        double[] box = face.box.clone();
        for (int i = 0; i < 4; i++) {
            box[i] += by;
        }
        double[][] points = new double[5][];
        for (int i = 0; i < 5; i++) {
            points[i] = new double[] {face.landmarks[i][0] + by, face.landmarks[i][1] + by};
        }
        return new Face(face.score, box, points);
    }

    /** 16 x 16 cells of two anchors, then 8 x 8 cells of six; only their centres matter. */
    private static double[][] centres() {
        double[][] centres = new double[ANCHORS][];
        int at = 0;
        for (int cells = 16; cells >= 8; cells /= 2) {
            for (int cell = 0; cell < cells * cells; cell++) {
                for (int i = 0; i < (cells == 16 ? 2 : 6); i++) {
                    centres[at++] = new double[] {(cell % cells + 0.5) / cells, (cell / cells + 0.5) / cells};
                }
            }
        }
        return centres;
    }

    @Override
    public void close() {
        network.close();
    }
}
