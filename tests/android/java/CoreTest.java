import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Random;
import javax.crypto.KeyGenerator;
import javax.crypto.SecretKey;
import org.bridgeface.core.Benchmark;
import org.bridgeface.core.CameraGate;
import org.bridgeface.core.Crops;
import org.bridgeface.core.DemoException;
import org.bridgeface.core.Embedder;
import org.bridgeface.core.FaceFinder;
import org.bridgeface.core.Frames;
import org.bridgeface.core.Json;
import org.bridgeface.core.Matcher;
import org.bridgeface.core.Network;
import org.bridgeface.core.People;
import org.bridgeface.core.Quality;
import org.bridgeface.core.Request;
import org.bridgeface.core.Rgb;
import org.bridgeface.core.Sidecar;
import org.bridgeface.core.Similarity;
import org.bridgeface.core.Vault;
import org.bridgeface.core.Verdict;

/** STUDENT FINDER: each test method's name and "ok" or what went wrong, as JSON. */
public final class CoreTest {
    private static String student;
    private static String finder;

    public static void main(String[] args) throws Exception {
        student = args[0];
        finder = args[1];
        Network.loadLibraries();
        Map<String, Object> results = new LinkedHashMap<String, Object>();
        for (Method method : CoreTest.class.getDeclaredMethods()) {
            if (method.getName().startsWith("test")) {
                try {
                    method.invoke(new CoreTest());
                    results.put(method.getName(), "ok");
                } catch (InvocationTargetException problem) {
                    results.put(method.getName(), String.valueOf(problem.getCause()));
                }
            }
        }
        System.out.println(Json.write(results));
    }

    private interface Act {
        void run() throws Exception;
    }

    private static void refused(String words, Act act) throws Exception {
        try {
            act.run();
        } catch (DemoException problem) {
            check(problem.getMessage().contains(words), "it says: " + problem.getMessage());
            return;
        }
        throw new AssertionError("nothing was refused");
    }

    private static void check(boolean right, String what) {
        if (!right) {
            throw new AssertionError(what);
        }
    }

    private static byte[] bytes(String file) throws Exception {
        return Files.readAllBytes(Paths.get(file));
    }

    private static String sidecarText() throws Exception {
        return new String(bytes(student + ".json"), "UTF-8");
    }

    private static Sidecar sidecar() throws Exception {
        return Sidecar.parse(sidecarText());
    }

    private static float[] noise(long seed, int dim) {
        Random random = new Random(seed);
        float[] out = new float[dim];
        for (int i = 0; i < dim; i++) {
            out[i] = (float) random.nextGaussian();
        }
        return out;
    }

    void testACorruptModelIsRefusedBeforeNativeCodeSeesIt() throws Exception {
        final Sidecar sidecar = sidecar();
        final byte[] model = bytes(student);
        for (int at : new int[] {0, 4, model.length / 2, model.length - 1}) {
            final byte[] broken = model.clone();
            broken[at] ^= 1;
            refused("damaged", () -> new Embedder(sidecar, broken, 1));
        }
        refused("damaged", () -> new Embedder(sidecar, Arrays.copyOf(model, model.length / 2), 1));
        refused("damaged", () -> new Embedder(sidecar, new byte[0], 1));
        final byte[] other = bytes(finder);
        other[100] ^= 1;
        refused("damaged", () -> new FaceFinder(other, 1));
    }

    void testWhatIsNoModelIsRefusedByTheRuntime() throws Exception {
        // Garbage whose hash nobody compared: the runtime itself must say no, as it may meet it at build time.
        refused("cannot open", () -> new Network("this is no flatbuffer at all".getBytes("UTF-8"), 1));
    }

    void testASidecarOfAnotherModel() throws Exception {
        final Sidecar sidecar = sidecar();
        refused("not the one of its sidecar", () -> new Embedder(sidecar, bytes(finder), 1));
        // The hash is right, the shape is not: a sidecar made by hand.
        final byte[] model = bytes(finder);
        String text = sidecarText()
                .replace("\"sha256\": \"" + sidecar.sha256, "\"sha256\": \"" + Sidecar.digest(model))
                .replaceFirst("\"bytes\": \\d+", "\"bytes\": " + model.length);
        final Sidecar forged = Sidecar.parse(text);
        refused("input or output", () -> new Embedder(forged, model, 1));
    }

    void testABrokenSidecar() throws Exception {
        final String text = sidecarText();
        for (int length = 0; length < text.length() - 2; length += 7) {
            final String cut = text.substring(0, length);
            refused("sidecar cannot be used", () -> Sidecar.parse(cut));
        }
        String[][] changes = {
            {"\"schema_version\": 1", "\"schema_version\": 2", "schema"},
            {"\"format\": \"tflite\"", "\"format\": \"onnx\"", "tflite alone"},
            {"\"metric\": \"cosine\"", "\"metric\": \"hamming\"", "metric"},
            {"\"template\": \"arcface\"", "\"template\": \"mine\"", "cannot cut"},
            {"bilinear to the template", "nearest to the template", "reduced in a way"},
            {"\"layout\": \"NHWC\"", "\"layout\": \"NCHW\"", "NHWC"},
            {"\"embedding_dim\": 128", "\"embedding_dim\": -1", "embedding_dim"},
            {"\"embedding_dim\": 128", "\"embedding_dim\": \"many\"", "embedding_dim"},
            {"\"alpha\": null", "\"alpha\": {\"input\": \"alpha\"}", "alpha"},
            {"\"thresholds\": {", "\"thresholds\": {\"x\": 3, ", "thresholds.x"},
        };
        for (final String[] change : changes) {
            check(text.contains(change[0]), change[0] + " is not in the sidecar");
            refused(change[2], () -> Sidecar.parse(text.replace(change[0], change[1])));
        }
    }

    void testBrokenJson() throws Exception {
        StringBuilder deep = new StringBuilder();
        for (int i = 0; i < 100000; i++) {
            deep.append('[');
        }
        String[] broken = {
            "", " ", "{", "[1,]", "{\"a\"}", "{\"a\": 1,}", "tru", "\"open", "\"\\x\"", "\"\\u12\"", "1 2", "--1",
            "1e999", "{1: 2}", deep.toString(),
        };
        for (final String text : broken) {
            refused("JSON", () -> Json.parse(text));
        }
        Object value = Json.parse("{\"a\": [1, -2.5e3, true, null, \"\\u00e4\\n\\\"\"], \"b\": {}}");
        check(Json.parse(Json.write(value)).equals(value), "written and read again it differs");
    }

    void testTwoHundredPeople() throws Exception {
        Sidecar sidecar = sidecar();
        People people = new People(sidecar);
        for (int i = 0; i < 200; i++) {
            people.enrol("Person " + i, noise(i, sidecar.dim));
        }
        SecretKey key = KeyGenerator.getInstance("AES").generateKey();
        byte[] sealed = Vault.seal(key, people.write());
        People again = People.read(Vault.open(key, sealed), sidecar);
        check(again.names().size() == 200, again.names().size() + " names");
        for (int i = 0; i < 200; i++) {
            float[] face = noise(i, sidecar.dim);
            face[0] += 0.1f;
            check(again.match(null, face, "cosine").name.equals("Person " + i), "person " + i + " is another");
        }
        check(again.match("person 7", noise(7, sidecar.dim), "cosine").score > 0.999, "her own name does not match");
        check(again.match("Person 8", noise(7, sidecar.dim), "cosine").score < 0.5, "another's name matches");
        check(again.delete("Person 7") && !again.delete("Person 7"), "she cannot be deleted once");
        check(People.read(again.write(), sidecar).faces("Person 7") == 0, "she is still in the file");
        check(!again.match(null, noise(7, sidecar.dim), "cosine").name.equals("Person 7"), "she is still found");
    }

    void testTooManyPeopleAndFaces() throws Exception {
        final Sidecar sidecar = sidecar();
        final People people = new People(sidecar);
        for (int i = 0; i < People.MOST; i++) {
            people.enrol("P" + i, noise(i, sidecar.dim));
        }
        refused("delete someone", () -> people.enrol("one more", noise(1, sidecar.dim)));
        for (int i = 0; i < 9; i++) {
            people.enrol("p1", noise(5000 + i, sidecar.dim));
        }
        check(people.faces("P1") == People.MOST_OF_ONE, people.faces("P1") + " faces");
        check(people.match("P1", noise(5008, sidecar.dim), "cosine").score > 0.999, "the last face was not kept");
        check(people.match("P1", noise(1, sidecar.dim), "cosine").score < 0.9, "the first face was kept");
    }

    void testNames() throws Exception {
        check(People.checkedName("  A \n\t B\u0000 ").equals("A B"), "spaces are kept");
        refused("name first", () -> People.checkedName(" \n "));
        refused("name first", () -> People.checkedName(null));
        refused("shorten", () -> People.checkedName(new String(new char[61]).replace('\0', 'x')));
        Sidecar sidecar = sidecar();
        People people = new People(sidecar);
        people.enrol("Зоя \uD83D\uDE00", noise(1, sidecar.dim));
        check(People.read(people.write(), sidecar).names().equals(people.names()), "a name changed on the way");
    }

    void testADamagedOrForeignFileOfPeople() throws Exception {
        final Sidecar sidecar = sidecar();
        People people = new People(sidecar);
        people.enrol("A", noise(1, sidecar.dim));
        final byte[] written = people.write();
        for (int length = 0; length < written.length; length += 13) {
            final byte[] cut = Arrays.copyOf(written, length);
            refused("delete all", () -> People.read(cut, sidecar));
        }
        refused("damaged", () -> People.read(Arrays.copyOf(written, written.length + 1), sidecar));
        final Sidecar other = Sidecar.parse(sidecarText().replace(sidecar.sha256, "00" + sidecar.sha256.substring(2)));
        refused("another model", () -> People.read(written, other));
    }

    void testASealedFileShowsNothingAndNoticesEveryChange() throws Exception {
        final SecretKey key = KeyGenerator.getInstance("AES").generateKey();
        final byte[] secret = "Ada Lovelace and her numbers".getBytes("UTF-8");
        final byte[] sealed = Vault.seal(key, secret);
        check(!new String(sealed, "ISO-8859-1").contains("Ada"), "the name can be read");
        check(Arrays.equals(Vault.open(key, sealed), secret), "it does not open");
        check(!Arrays.equals(sealed, Vault.seal(key, secret)), "the same nonce twice");
        for (int i = 0; i < sealed.length; i++) {
            final byte[] changed = sealed.clone();
            changed[i] ^= 1;
            refused("cannot be decrypted", () -> Vault.open(key, changed));
            final byte[] cut = Arrays.copyOf(sealed, i);
            refused("cannot be decrypted", () -> Vault.open(key, cut));
        }
        final SecretKey lost = KeyGenerator.getInstance("AES").generateKey();
        refused("cannot be decrypted", () -> Vault.open(lost, sealed));
    }

    void testTurningThePhoneKeepsTheRequest() throws Exception {
        Request request = Request.verify("Ada");
        for (int i = 0; i < 10; i++) {
            request = request.waited();
        }
        Request after = Request.read(request.write());
        check(after.kind == Request.Kind.VERIFY && after.name.equals("Ada"), "it was lost");
        int left = 0;
        while (after.kind != Request.Kind.NONE) {
            after = after.waited();
            left++;
        }
        check(left == Request.FRAMES - 10, left + " frames were left");
        check(Request.read(Request.verify(null).write()).name == null, "anyone has a name now");
        check(Request.read(Request.enrol("A\nB").write()).name.equals("A B"), "the enrolled name changed");
        check(Request.read(Request.NONE.write()).kind == Request.Kind.NONE, "none became one");
        String[] garbage = {
            null, "", "x", "ENROL\n5\n", "ENROL\n-1\nA", "VERIFY\n999999\nA", "DANCE\n1\nA", "VERIFY\nx\nA", "\n\n\n",
        };
        for (String text : garbage) {
            check(Request.read(text).kind == Request.Kind.NONE, text + " was taken for a request");
        }
    }

    void testTheCameraDenied() {
        check(CameraGate.state(false, false, false, 1, false) == CameraGate.State.ASK, "it does not ask first");
        check(CameraGate.state(false, true, true, 1, false) == CameraGate.State.ASK, "it does not ask again");
        check(CameraGate.state(false, true, false, 1, false) == CameraGate.State.DENIED, "denied for good");
        check(CameraGate.state(true, true, false, 0, false) == CameraGate.State.ABSENT, "no camera");
        check(CameraGate.state(true, true, false, 1, true) == CameraGate.State.LOST, "lost");
        check(CameraGate.state(true, false, false, 1, false) == CameraGate.State.OPEN, "open");
        for (CameraGate.State state : CameraGate.State.values()) {
            check(state.message.isEmpty() == (state == CameraGate.State.OPEN), state + " says nothing");
        }
    }

    void testFramesAreTurnedUpright() {
        // A 4 x 2 picture of greys, its rows padded as cameras do.
        byte[] luma = {10, 20, 30, 40, 0, 50, 60, 70, 80, 0};
        Frames.Plane grey = new Frames.Plane(ByteBuffer.wrap(luma), 5, 1);
        byte[] middle = new byte[8];
        Arrays.fill(middle, (byte) 128);
        Frames.Plane none = new Frames.Plane(ByteBuffer.wrap(middle), 4, 2);
        int[][] expected = {
            {10, 20, 30, 40, 50, 60, 70, 80}, {50, 10, 60, 20, 70, 30, 80, 40}, {80, 70, 60, 50, 40, 30, 20, 10},
            {40, 80, 30, 70, 20, 60, 10, 50},
        };
        for (int turn = 0; turn < 4; turn++) {
            Rgb image = Frames.upright(4, 2, grey, none, none, 90 * turn);
            check(image.width == (turn % 2 == 0 ? 4 : 2), "its width is " + image.width);
            for (int i = 0; i < 8; i++) {
                for (int c = 0; c < 3; c++) {
                    check((image.data[3 * i + c] & 255) == expected[turn][i], turn + ": pixel " + i);
                }
            }
        }
        // Red in full-range BT.601: Y 76, U 85, V 255.
        Frames.Plane y = new Frames.Plane(ByteBuffer.wrap(new byte[] {76}), 1, 1);
        Frames.Plane u = new Frames.Plane(ByteBuffer.wrap(new byte[] {85}), 1, 1);
        Frames.Plane v = new Frames.Plane(ByteBuffer.wrap(new byte[] {(byte) 255}), 1, 1);
        byte[] red = Frames.upright(1, 1, y, u, v, 0).data;
        check((red[0] & 255) >= 253 && (red[1] & 255) <= 2 && (red[2] & 255) <= 2, Arrays.toString(red));
        check(Frames.turn(270, 0, true) == 270 && Frames.turn(90, 0, false) == 90, "held upright");
        check(Frames.turn(270, 90, true) == 0 && Frames.turn(90, 90, false) == 0, "held on its side");
    }

    void testMirroringIsForTheEyeAlone() {
        Rgb image = new Rgb(2, 1, new byte[] {1, 2, 3, 4, 5, 6});
        check(Arrays.equals(image.argb(false), new int[] {0xFF010203, 0xFF040506}), "plain");
        check(Arrays.equals(image.argb(true), new int[] {0xFF040506, 0xFF010203}), "mirrored");
        check(Arrays.equals(Rgb.fromArgb(2, 1, image.argb(false)).data, image.data), "there and back");
    }

    void testPointsThatNoFaceHas() throws Exception {
        final double[] no = {Double.NaN, Double.NaN}, here = {5, 5};
        final double[][] target = {{1, 1}, {2, 1}, {1, 2}};
        refused("visible", () -> Similarity.fit(new double[][] {here, no, no}, target));
        refused("too small", () -> Similarity.fit(new double[][] {here, here, here}, target));
        final Rgb photo = new Rgb(3, 3, new byte[27]);
        refused("visible", () -> Crops.loose(photo, new double[][] {no, no, no, no, no}));
        // A face that lies outside the picture is cut from its border, without a crash.
        double[][] outside = {{-900, -900}, {-860, -900}, {-880, -880}, no, no};
        check(Crops.loose(photo, outside).image.width == Crops.LOOSE_PX, "no crop");
    }

    void testScores() {
        float[] a = {3, 4}, b = {4, -3};
        check(Math.abs(Matcher.score("cosine", a, a) - 1) < 1e-12, "cosine to itself");
        check(Math.abs(Matcher.score("cosine", a, b)) < 1e-12, "cosine of a right angle");
        check(Math.abs(Matcher.score("euclidean", a, b) + Math.sqrt(50)) < 1e-12, "distance");
        check(Matcher.score("cosine", a, new float[2]) == 0, "of nothing");
    }

    void testVerdicts() throws Exception {
        Sidecar sidecar = sidecar();
        check(Verdict.of(null, sidecar, "1e-3").text.contains("enrol someone"), "nobody");
        People people = new People(sidecar);
        people.enrol("Ada", noise(1, sidecar.dim));
        People.Match same = people.match(null, noise(1, sidecar.dim), sidecar.metric);
        People.Match other = people.match(null, noise(2, sidecar.dim), sidecar.metric);
        check(Verdict.of(same, sidecar, "1e-3").same, "the same is not");
        check(!Verdict.of(other, sidecar, "1e-3").same, "another is the same");
        check(Verdict.of(other, sidecar, "1e-3").text.contains("threshold"), "no threshold is named");
        check(Verdict.of(same, sidecar, "1e-3").text.contains("1e-3 for each enrolled face compared"), "of what rate");
        Verdict none = Verdict.of(same, sidecar, "1e-9");
        check(none.same == null && none.text.contains("No decision"), none.text);
    }

    void testHints() {
        Rgb grey = new Rgb(112, 112, new byte[112 * 112 * 3]);
        check(Quality.of(2, grey, 16).hint().startsWith("Too small"), "small");
        check(Quality.of(36, grey, 16).hint().startsWith("Too dark"), "dark");
        byte[] light = new byte[112 * 112 * 3];
        Arrays.fill(light, (byte) 120);
        check(Quality.of(36, new Rgb(112, 112, light), 16).hint().startsWith("Too blurred"), "blurred");
        new Random(1).nextBytes(light);
        check(Quality.of(36, new Rgb(112, 112, light), 16).hint() == null, "sharp");
    }

    @SuppressWarnings("unchecked")
    void testTheBenchmark() throws Exception {
        long[] times = new long[100];
        for (int i = 0; i < 100; i++) {
            times[i] = 1000L * (100 - i);
        }
        Benchmark made = Benchmark.of(times);
        check(made.p50 == 50 && made.p95 == 95, made.p50 + " " + made.p95);
        check(Math.abs(made.facesPerSecond - 100 / 0.00505) < 1e-6, "rate " + made.facesPerSecond);
        Embedder embedder = new Embedder(sidecar(), bytes(student), 1);
        Benchmark run = Benchmark.run(embedder, 500);
        check(run.facesPerSecond > 0 && run.p95 >= run.p50 && run.p50 > 0, "no figures");
        String text = run.json(embedder.sidecar, Network.runtime(), "a \"device\"", 1);
        Map<String, Object> json = (Map<String, Object>) Json.parse(text);
        check(json.get("device").equals("a \"device\"") && json.get("faces").equals(500.0), text);
        embedder.close();
        embedder.close();
        refused("failed", () -> embedder.embed(new Rgb(16, 16, new byte[768])));
    }
}
