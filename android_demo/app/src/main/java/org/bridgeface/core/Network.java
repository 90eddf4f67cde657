package org.bridgeface.core;

import java.io.Closeable;

/** A TFLite model that is open in LiteRT: bytes in, bytes out. */
public final class Network implements Closeable {
    public static final int FLOAT32 = 1;
    public static final int UINT8 = 3;
    public static final int INT8 = 9;

    private long handle;

    /** `model` must have been compared with a known hash before; a DemoException where the runtime refuses it. */
    public Network(byte[] model, int threads) throws DemoException {
        handle = LiteRt.open(model, threads);
        if (handle == 0) {
            throw new DemoException("LiteRT cannot open the model: install the app again.");
        }
    }

    /** Load Google's library and the glue, from the app or from where the JVM looks for libraries. */
    public static void loadLibraries() throws DemoException {
        try {
            System.loadLibrary("litert-lm");
            System.loadLibrary("facejni");
        } catch (UnsatisfiedLinkError problem) {
            throw new DemoException(
                    "This device's processor is not one the app was built for (" + problem.getMessage() + ").", problem);
        }
    }

    public static String runtime() {
        return "LiteRT (TFLite " + LiteRt.version() + ")";
    }

    /** Type and sizes of the input; index counts outputs, -1 is the input. */
    public synchronized int[] shape(int index) throws DemoException {
        int[] shape = handle == 0 ? null : LiteRt.shape(handle, index);
        if (shape == null) {
            throw new DemoException("The model has no output " + index + ".");
        }
        return shape;
    }

    public synchronized void run(byte[] input, byte[]... outputs) throws DemoException {
        int status = handle == 0 ? -1 : LiteRt.run(handle, input, outputs);
        if (status != 0) {
            throw new DemoException("The network failed (status " + status + "): start the app again.");
        }
    }

    @Override
    public synchronized void close() {
        if (handle != 0) {
            LiteRt.close(handle);
            handle = 0;
        }
    }
}
