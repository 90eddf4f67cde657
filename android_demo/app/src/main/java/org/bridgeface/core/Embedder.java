package org.bridgeface.core;

import java.io.Closeable;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;

/** The student: an aligned face of inputPx x inputPx in, an embedding out. One thread at a time. */
public final class Embedder implements Closeable {
    public final Sidecar sidecar;
    private final Network network;
    private final byte[] input;
    private final byte[] output;

    /** Compares the model with its sidecar before the runtime sees it, and the runtime's view of it after. */
    public Embedder(Sidecar sidecar, byte[] model, int threads) throws DemoException {
        sidecar.check(model);
        this.sidecar = sidecar;
        network = new Network(model, threads);
        boolean fits = false;
        try {
            fits = fits(network.shape(-1), network.shape(0));
        } finally {
            if (!fits) {
                network.close();
            }
        }
        if (!fits) {
            throw new DemoException("The model's input or output is not the one of its sidecar: build the app again.");
        }
        input = new byte[sidecar.inputPx * sidecar.inputPx * 3 * (isFloat() ? 4 : 1)];
        output = new byte[sidecar.dim * 4];
    }

    private boolean fits(int[] in, int[] out) {
        int type = isFloat() ? Network.FLOAT32 : sidecar.dtype.equals("uint8") ? Network.UINT8 : Network.INT8;
        boolean takes = in.length == 5 && in[0] == type && in[1] == 1 && in[4] == 3;
        takes = takes && in[2] == sidecar.inputPx && in[3] == sidecar.inputPx;
        return takes && out.length == 3 && out[0] == Network.FLOAT32 && out[1] == 1 && out[2] == sidecar.dim;
    }

    private boolean isFloat() {
        return sidecar.dtype.equals("float32");
    }

    public synchronized float[] embed(Rgb face) throws DemoException {
        if (face.width != sidecar.inputPx || face.height != sidecar.inputPx) {
            throw new IllegalArgumentException("a face of " + face.width + "x" + face.height);
        }
        if (isFloat()) {
            ByteBuffer floats = ByteBuffer.wrap(input).order(ByteOrder.LITTLE_ENDIAN);
            for (byte level : face.data) {
                floats.putFloat((level & 255) / 255f);
            }
        } else {
            // At scale 1/255 the byte b is the unsigned integer b, or the signed b - 128: the highest bit flipped.
            int flip = sidecar.dtype.equals("int8") ? 0x80 : 0;
            for (int i = 0; i < input.length; i++) {
                input[i] = (byte) (face.data[i] ^ flip);
            }
        }
        network.run(input, output);
        float[] embedding = new float[sidecar.dim];
        ByteBuffer.wrap(output).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(embedding);
        for (float value : embedding) {
            if (Float.isNaN(value) || Float.isInfinite(value)) {
                throw new DemoException("The network gave no number for this face; try again.");
            }
        }
        return embedding;
    }

    @Override
    public void close() {
        network.close();
    }
}
