package org.bridgeface.core;

/** The native side (native/jni.c): TensorFlow Lite's C API inside Google's LiteRT library. Use Network instead. */
final class LiteRt {
    private LiteRt() {}

    /** Version of the runtime that is loaded. */
    static native String version();

    /** A handle, or 0 where the runtime refuses the model. */
    static native long open(byte[] model, int threads);

    /** Type, then sizes, of the input (index -1) or of an output; null where there is none. */
    static native int[] shape(long handle, int index);

    /** Run on the input's bytes and fill the bytes of each output; 0 is success. */
    static native int run(long handle, byte[] input, byte[][] outputs);

    static native void close(long handle);
}
