package org.bridgeface.demo;

import android.content.Context;
import java.io.Closeable;
import java.io.IOException;
import java.io.InputStream;
import org.bridgeface.core.DemoException;
import org.bridgeface.core.Embedder;
import org.bridgeface.core.FaceFinder;
import org.bridgeface.core.Network;
import org.bridgeface.core.Sidecar;

/** The two networks in the app's assets, opened once a process. */
final class Models implements Closeable {
    static final int THREADS = 1;

    final FaceFinder finder;
    final Embedder embedder;

    Models(Context context) throws DemoException {
        Network.loadLibraries();
        Sidecar sidecar;
        try {
            sidecar = Sidecar.parse(new String(asset(context, "student.tflite.json"), "UTF-8"));
        } catch (IOException problem) {
            throw missing("student.tflite.json", problem);
        }
        finder = new FaceFinder(asset(context, "face_finder.tflite"), THREADS);
        try {
            embedder = new Embedder(sidecar, asset(context, "student.tflite"), THREADS);
        } catch (DemoException problem) {
            finder.close();
            throw problem;
        }
    }

    private static byte[] asset(Context context, String name) throws DemoException {
        try (InputStream in = context.getAssets().open(name)) {
            return PeopleStore.all(in);
        } catch (IOException problem) {
            throw missing(name, problem);
        }
    }

    private static DemoException missing(String name, IOException problem) {
        return new DemoException(name + " is missing or damaged in this app: install it again.", problem);
    }

    @Override
    public void close() {
        finder.close();
        embedder.close();
    }
}
