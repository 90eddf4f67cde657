import java.nio.file.Files;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.bridgeface.core.Embedder;
import org.bridgeface.core.FaceFinder;
import org.bridgeface.core.Json;
import org.bridgeface.core.Look;
import org.bridgeface.core.Network;
import org.bridgeface.core.Rgb;
import org.bridgeface.core.Sidecar;

/** VECTORS STUDENT FINDER: what the app sees in each photo: points, hint and embedding, as JSON. */
public final class CheckLook {
    @SuppressWarnings("unchecked")
    public static void main(String[] args) throws Exception {
        Network.loadLibraries();
        FaceFinder finder = new FaceFinder(Files.readAllBytes(Paths.get(args[2])), 1);
        Sidecar sidecar = Sidecar.parse(new String(Files.readAllBytes(Paths.get(args[1] + ".json")), "UTF-8"));
        Embedder embedder = new Embedder(sidecar, Files.readAllBytes(Paths.get(args[1])), 1);
        Map<String, Object> vectors =
                (Map<String, Object>) Json.parse(new String(Files.readAllBytes(Paths.get(args[0])), "UTF-8"));
        List<Object> out = new ArrayList<Object>();
        for (Object one : (List<Object>) vectors.get("faces")) {
            Map<String, Object> image = (Map<String, Object>) ((Map<String, Object>) one).get("image");
            int width = ((Double) image.get("width")).intValue(), height = ((Double) image.get("height")).intValue();
            Rgb photo = new Rgb(width, height, Base64.getDecoder().decode((String) image.get("rgb")));
            Look look = Look.at(photo, finder, embedder, 96);
            Map<String, Object> row = new LinkedHashMap<String, Object>();
            if (look != null) {
                List<Object> points = new ArrayList<Object>(), numbers = new ArrayList<Object>();
                for (int i = 0; i < 5; i++) {
                    points.add(Arrays.<Object>asList(look.face.landmarks[i][0], look.face.landmarks[i][1]));
                }
                for (float value : look.embedding) {
                    numbers.add((double) value);
                }
                row.put("points", points);
                row.put("hint", look.quality.hint());
                row.put("sharpness", look.quality.sharpness);
                row.put("brightness", look.quality.brightness);
                row.put("embedding", numbers);
            }
            out.add(row);
        }
        // A picture without a face.
        out.add(Look.at(new Rgb(640, 480, new byte[640 * 480 * 3]), finder, embedder, 16) == null ? "no face" : "a face");
        finder.close();
        embedder.close();
        System.out.println(Json.write(out));
    }
}
