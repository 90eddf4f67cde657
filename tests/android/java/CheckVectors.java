import java.nio.file.Files;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.Base64;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.bridgeface.core.Crops;
import org.bridgeface.core.Embedder;
import org.bridgeface.core.Json;
import org.bridgeface.core.Matcher;
import org.bridgeface.core.Network;
import org.bridgeface.core.Rgb;
import org.bridgeface.core.Sidecar;

/** VECTORS FOLDER: largest differences of the Java code from the vectors of Python, as one JSON object. */
public final class CheckVectors {
    public static void main(String[] args) throws Exception {
        Map<String, Object> vectors = map(Json.parse(read(args[0])));
        String template = (String) vectors.get("template");
        int templatePx = number(vectors.get("template_px")), inputPx = number(vectors.get("input_px"));
        Map<String, Object> found = new LinkedHashMap<String, Object>();
        List<Rgb> crops = new ArrayList<Rgb>();
        for (Object one : list(vectors.get("faces"))) {
            Map<String, Object> face = map(one), image = map(face.get("image"));
            Rgb photo = rgb(image.get("rgb"), number(image.get("width")), number(image.get("height")));
            Crops.Loose loose = Crops.loose(photo, points(face.get("landmarks")));
            Map<String, Object> expected = map(face.get("loose"));
            worst(found, "loose", loose.image, expected.get("rgb"));
            double[][] moved = points(expected.get("landmarks"));
            for (int i = 0; i < 5; i++) {
                for (int c = 0; c < 2; c++) {
                    if (Double.isNaN(moved[i][c]) != Double.isNaN(loose.landmarks[i][c])) {
                        throw new AssertionError("a point is known to one side alone");
                    }
                    if (!Double.isNaN(moved[i][c])) {
                        most(found, "landmarks", Math.abs(moved[i][c] - loose.landmarks[i][c]));
                    }
                }
            }
            Rgb aligned = Crops.aligned(loose, template, templatePx);
            worst(found, "aligned", aligned, face.get("aligned"));
            Rgb seen = Crops.seen(aligned, inputPx, inputPx);
            worst(found, "crop", seen, face.get("crop"));
            for (Map.Entry<String, Object> entry : map(face.get("reduced")).entrySet()) {
                Rgb reduced = Crops.seen(aligned, Integer.parseInt(entry.getKey()), inputPx);
                worst(found, "reduced", reduced, entry.getValue());
            }
            // The network is judged on Python's own crop; whole, from the photo, below.
            crops.add(rgb(face.get("crop"), inputPx, inputPx));
            crops.add(seen);
        }
        Network.loadLibraries();
        found.put("runtime", Network.runtime());
        for (Object one : list(vectors.get("artifacts"))) {
            Map<String, Object> artifact = map(one);
            String file = args[1] + "/" + artifact.get("file"), name = (String) artifact.get("file");
            Embedder embedder = new Embedder(Sidecar.parse(read(file + ".json")), Files.readAllBytes(Paths.get(file)), 1);
            List<Object> rows = list(artifact.get("embeddings"));
            List<float[]> given = new ArrayList<float[]>();
            List<Object> mine = new ArrayList<Object>();
            for (int i = 0; i < rows.size(); i++) {
                float[] expected = floats(rows.get(i));
                given.add(expected);
                float[] same = embedder.embed(crops.get(2 * i)), whole = embedder.embed(crops.get(2 * i + 1));
                List<Object> row = new ArrayList<Object>();
                for (int k = 0; k < expected.length; k++) {
                    most(found, name + " largest value", Math.abs(expected[k]));
                    most(found, name + " embedding", Math.abs(expected[k] - same[k]));
                    row.add((double) same[k]);
                }
                mine.add(row);
                most(found, name + " 1 - cosine from the photo", 1 - Matcher.score("cosine", expected, whole));
            }
            found.put(name + " embeddings", mine);
            for (String metric : new String[] {"cosine", "euclidean"}) {
                List<Object> scores = list(map(artifact.get("scores")).get(metric));
                for (int i = 0; i < given.size(); i++) {
                    for (int j = 0; j < given.size(); j++) {
                        double expected = (Double) list(scores.get(i)).get(j);
                        double score = Matcher.score(metric, given.get(i), given.get(j));
                        most(found, name + " " + metric, Math.abs(expected - score));
                    }
                }
            }
            embedder.close();
        }
        System.out.println(Json.write(found));
    }

    private static void worst(Map<String, Object> found, String what, Rgb image, Object text) {
        byte[] expected = Base64.getDecoder().decode((String) text);
        if (expected.length != image.data.length) {
            throw new AssertionError(what + ": " + expected.length + " bytes, here " + image.data.length);
        }
        int off = 0;
        for (int i = 0; i < expected.length; i++) {
            int difference = Math.abs((expected[i] & 255) - (image.data[i] & 255));
            most(found, what, difference);
            off += difference > 0 ? 1 : 0;
        }
        most(found, what + " share", (double) off / expected.length);
    }

    private static void most(Map<String, Object> found, String what, double value) {
        Object before = found.get(what);
        found.put(what, before == null ? value : Math.max((Double) before, value));
    }

    private static String read(String file) throws Exception {
        return new String(Files.readAllBytes(Paths.get(file)), "UTF-8");
    }

    private static Rgb rgb(Object text, int width, int height) {
        return new Rgb(width, height, Base64.getDecoder().decode((String) text));
    }

    private static double[][] points(Object value) {
        double[][] points = new double[5][];
        for (int i = 0; i < 5; i++) {
            Object point = list(value).get(i);
            points[i] = point == null
                    ? new double[] {Double.NaN, Double.NaN}
                    : new double[] {(Double) list(point).get(0), (Double) list(point).get(1)};
        }
        return points;
    }

    private static float[] floats(Object value) {
        float[] out = new float[list(value).size()];
        for (int i = 0; i < out.length; i++) {
            out[i] = ((Double) list(value).get(i)).floatValue();
        }
        return out;
    }

    private static int number(Object value) {
        return ((Double) value).intValue();
    }

    @SuppressWarnings("unchecked")
    private static Map<String, Object> map(Object value) {
        return (Map<String, Object>) value;
    }

    @SuppressWarnings("unchecked")
    private static List<Object> list(Object value) {
        return (List<Object>) value;
    }
}
