package org.bridgeface.core;

import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;

/** How fast the network is on this device: one face at a time, from aligned crop to embedding, in a hot loop. */
public final class Benchmark {
    public final double facesPerSecond;
    public final double p50;
    public final double p95;
    public final int faces;

    private Benchmark(long[] nanoseconds, double seconds) {
        long[] sorted = nanoseconds.clone();
        Arrays.sort(sorted);
        faces = sorted.length;
        facesPerSecond = faces / seconds;
        p50 = percentile(sorted, 0.50) / 1e3;
        p95 = percentile(sorted, 0.95) / 1e3;
    }

    /** Of times in nanoseconds: nearest rank, as in the project's own benchmarks a whole measured value. */
    static long percentile(long[] sorted, double share) {
        return sorted[Math.max(0, (int) Math.ceil(share * sorted.length) - 1)];
    }

    public static Benchmark of(long[] nanoseconds) {
        double sum = 0;
        for (long one : nanoseconds) {
            sum += one;
        }
        return new Benchmark(nanoseconds, sum / 1e9);
    }

    /** Embed noise `faces` times after a tenth as many to warm up. */
    public static Benchmark run(Embedder embedder, int faces) throws DemoException {
        int px = embedder.sidecar.inputPx;
        byte[] noise = new byte[px * px * 3];
        new java.util.Random(1).nextBytes(noise);
        Rgb face = new Rgb(px, px, noise);
        for (int i = 0; i < faces / 10; i++) {
            embedder.embed(face);
        }
        long[] times = new long[faces];
        for (int i = 0; i < faces; i++) {
            long began = System.nanoTime();
            embedder.embed(face);
            times[i] = System.nanoTime() - began;
        }
        return of(times);
    }

    /** One JSON object: the figures, and on what they were measured. */
    public String json(Sidecar sidecar, String runtime, String device, int threads) {
        Map<String, Object> out = new LinkedHashMap<String, Object>();
        out.put("model", sidecar.model);
        out.put("file", sidecar.file);
        out.put("precision", sidecar.precision);
        out.put("sha256", sidecar.sha256);
        out.put("runtime", runtime);
        out.put("device", device);
        out.put("threads", threads);
        out.put("batch", 1);
        out.put("preprocessing", "outside");
        out.put("faces", faces);
        out.put("faces_per_second", Math.rint(facesPerSecond * 10) / 10);
        out.put("p50_us", p50);
        out.put("p95_us", p95);
        return Json.write(out);
    }
}
