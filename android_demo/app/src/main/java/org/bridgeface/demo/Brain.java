package org.bridgeface.demo;

import android.content.Context;
import android.os.Build;
import java.io.Closeable;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import org.bridgeface.core.Benchmark;
import org.bridgeface.core.DemoException;
import org.bridgeface.core.Look;
import org.bridgeface.core.Network;
import org.bridgeface.core.People;
import org.bridgeface.core.Request;
import org.bridgeface.core.Rgb;
import org.bridgeface.core.Sidecar;
import org.bridgeface.core.Verdict;

/** The networks and the enrolled people: what works on the background thread, and there alone. */
final class Brain implements Closeable {
    private static final String FMR = "1e-3";
    private static final int BENCH_FACES = 5000;

    private final Context context;
    private final PeopleStore store;
    private Models models;
    private People people;

    /** A benchmark in words for the screen and as JSON. */
    static final class Figures {
        final String words;
        final String json;

        Figures(String words, String json) {
            this.words = words;
            this.json = json;
        }
    }

    Brain(Context context) {
        this.context = context;
        store = new PeopleStore(context);
    }

    void open() throws DemoException {
        models = new Models(context);
        people = store.load(models.embedder.sidecar);
    }

    /** Are the networks open, and could the enrolled people be read? */
    boolean ready() {
        return models != null && people != null;
    }

    Look look(Rgb frame, int sliderPx) throws DemoException {
        return Look.at(frame, models.finder, models.embedder, sliderPx);
    }

    /** Do what was asked for with a good face; the words for it. */
    String answer(Request request, Look look) throws DemoException {
        Sidecar model = models.embedder.sidecar;
        if (request.kind == Request.Kind.ENROL) {
            People more = copy();
            more.enrol(request.name, look.embedding);
            store.save(more);
            people = more;
            return context.getString(
                    R.string.enrolled, request.name, people.faces(request.name), People.MOST_OF_ONE);
        }
        return Verdict.of(people.match(request.name, look.embedding, model.metric), model, FMR).text;
    }

    List<String> names() {
        return people == null ? new ArrayList<String>() : people.names();
    }

    /** The names with the number of faces of each. */
    List<String> labels() {
        List<String> labels = new ArrayList<String>();
        for (String name : names()) {
            labels.add(name + " (" + people.faces(name) + ")");
        }
        return labels;
    }

    /** name: null for everyone, which also helps where the file cannot be read. */
    void delete(String name) throws DemoException {
        if (name == null || people == null) {
            store.deleteAll();
            people = models == null ? null : new People(models.embedder.sidecar);
        } else {
            People fewer = copy();
            fewer.delete(name);
            store.save(fewer);
            people = fewer;
        }
    }

    /** What is changed and saved before it counts: a save that fails leaves everyone as they were. */
    private People copy() throws DemoException {
        return People.read(people.write(), models.embedder.sidecar);
    }

    /** Null where no network is open. */
    Figures measure() throws DemoException {
        if (models == null) {
            return null;
        }
        Sidecar model = models.embedder.sidecar;
        Benchmark result = Benchmark.run(models.embedder, BENCH_FACES);
        String device = Build.MANUFACTURER + " " + Build.MODEL + ", Android " + Build.VERSION.RELEASE + ", "
                + Build.SUPPORTED_ABIS[0];
        String runtime = Network.runtime() + ", XNNPACK, " + Models.THREADS + " thread";
        String words = String.format(
                Locale.US, "%.0f faces/s, p50 %.0f µs, p95 %.0f µs\n%s\n%s, %s", result.facesPerSecond, result.p50,
                result.p95, device, model.file, runtime);
        return new Figures(words, result.json(model, runtime, device, Models.THREADS));
    }

    @Override
    public void close() {
        if (models != null) {
            models.close();
            models = null;
        }
    }
}
