package org.bridgeface.core;

import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** The JSON beside a model: how to feed it, how to judge its output, and which file it speaks of. */
public final class Sidecar {
    public final String file;
    public final String sha256;
    public final long bytes;
    public final String model;
    public final String precision;
    public final String dtype;
    public final int inputPx;
    public final String template;
    public final int templatePx;
    public final int dim;
    public final String metric;

    /** Score from which two faces are called the same person, by false match rate; null where it was not measured. */
    public final Map<String, Double> thresholds = new LinkedHashMap<String, Double>();

    /** The data and protocol that the thresholds come from, or why there is none. */
    public final Map<String, String> measured = new LinkedHashMap<String, String>();

    private Sidecar(Map<String, Object> json) throws DemoException {
        if (number(json, "schema_version") != 1) {
            throw new DemoException("Its schema is not 1: build the app with the model's own version.");
        }
        file = text(json, "file");
        sha256 = text(json, "sha256");
        bytes = (long) number(json, "bytes");
        model = text(json, "model");
        precision = text(json, "precision");
        dim = positive(json, "embedding_dim");
        metric = text(json, "metric");
        if (!text(json, "format").equals("tflite")) {
            throw new DemoException("The model is " + text(json, "format") + "; this app runs tflite alone.");
        }
        if (!metric.equals("cosine") && !metric.equals("euclidean")) {
            throw new DemoException("Its metric '" + metric + "' is unknown.");
        }
        Map<String, Object> alpha = object(json, "alpha", true);
        if (alpha != null && alpha.get("input") != null) {
            throw new DemoException("The model takes an alpha with each face; this app has none to give.");
        }
        Map<String, Object> input = object(json, "input", false);
        dtype = text(input, "dtype");
        inputPx = side(input);
        Map<String, Object> crop = object(json, "crop", false);
        template = text(crop, "template");
        templatePx = positive(crop, "template_px");
        Crops.base(template);
        if (!text(crop, "resampling").equals(Crops.RESAMPLING)) {
            throw new DemoException("Its crop is reduced in a way that this app does not know.");
        }
        for (Map.Entry<String, Object> entry : object(json, "thresholds", false).entrySet()) {
            Map<String, Object> one = map(entry.getValue(), "thresholds." + entry.getKey());
            Object value = one.get("value");
            thresholds.put(entry.getKey(), value == null ? null : Double.valueOf(number(one, "value")));
            measured.put(
                    entry.getKey(),
                    value == null ? text(one, "reason") : text(one, "protocol") + " on " + text(one, "data"));
        }
    }

    /** Read and check the JSON of a sidecar; the message of the DemoException tells what is wrong with it. */
    public static Sidecar parse(String text) throws DemoException {
        try {
            return new Sidecar(map(Json.parse(text), "the sidecar"));
        } catch (DemoException problem) {
            throw new DemoException("The model's sidecar cannot be used. " + problem.getMessage(), problem);
        }
    }

    /** A DemoException where `data` is not the file that this sidecar was written for. */
    public void check(byte[] data) throws DemoException {
        if (data.length != bytes || !digest(data).equals(sha256)) {
            // Native code may crash on a damaged model: it never gets to see one.
            throw new DemoException(
                    "The model in this app is damaged or not the one of its sidecar (" + file + "): install the app again.");
        }
    }

    /** Sizes of the slider, largest first: what a face is reduced to before the network sees it. */
    public static int[] slider() {
        return new int[] {96, 64, 32, 16};
    }

    public static String digest(byte[] data) {
        try {
            StringBuilder hex = new StringBuilder();
            for (byte b : MessageDigest.getInstance("SHA-256").digest(data)) {
                hex.append(String.format("%02x", b));
            }
            return hex.toString();
        } catch (NoSuchAlgorithmException impossible) {
            throw new IllegalStateException(impossible);
        }
    }

    private static int side(Map<String, Object> input) throws DemoException {
        Object shape = input.get("shape");
        if (!(shape instanceof List) || ((List<?>) shape).size() != 4 || !text(input, "layout").equals("NHWC")) {
            throw new DemoException("Its input is not NHWC.");
        }
        List<?> sides = (List<?>) shape;
        Object side = sides.get(1);
        boolean square = side instanceof Double && side.equals(sides.get(2)) && Double.valueOf(3).equals(sides.get(3));
        if (!square || (Double) side < 1 || (Double) side > 512) {
            throw new DemoException("Its input is no square RGB face.");
        }
        String dtype = text(input, "dtype");
        if (!dtype.equals("float32")) {
            double zero = number(input, "zero_point");
            boolean bytes = dtype.equals("uint8") && zero == 0 || dtype.equals("int8") && zero == -128;
            if (!bytes || Math.abs(number(input, "scale") * 255 - 1) > 1e-3) {
                throw new DemoException("Its integers are not a camera's bytes.");
            }
        }
        return ((Double) side).intValue();
    }

    private static Map<String, Object> object(Map<String, Object> json, String key, boolean optional)
            throws DemoException {
        Object value = json.get(key);
        return optional && value == null ? null : map(value, key);
    }

    @SuppressWarnings("unchecked")
    private static Map<String, Object> map(Object value, String what) throws DemoException {
        if (!(value instanceof Map)) {
            throw new DemoException(what + " is no object.");
        }
        return (Map<String, Object>) value;
    }

    private static String text(Map<String, Object> json, String key) throws DemoException {
        Object value = json.get(key);
        if (!(value instanceof String)) {
            throw new DemoException(key + " is missing.");
        }
        return (String) value;
    }

    private static double number(Map<String, Object> json, String key) throws DemoException {
        Object value = json.get(key);
        if (!(value instanceof Double)) {
            throw new DemoException(key + " is no number.");
        }
        return (Double) value;
    }

    private static int positive(Map<String, Object> json, String key) throws DemoException {
        double value = number(json, key);
        if (value < 1 || value > 65536 || value != Math.rint(value)) {
            throw new DemoException(key + " is no size.");
        }
        return (int) value;
    }
}
