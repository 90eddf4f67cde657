package org.bridgeface.core;

/** One look at a frame: the largest face, what the network sees of it, how good it is, and its embedding. */
public final class Look {
    public final FaceFinder.Face face;
    public final Rgb seen;
    public final Quality quality;
    public final float[] embedding;

    private Look(FaceFinder.Face face, Rgb seen, Quality quality, float[] embedding) {
        this.face = face;
        this.seen = seen;
        this.quality = quality;
        this.embedding = embedding;
    }

    /** sliderPx: what the aligned face is reduced to first, as from a worse camera. Null where there is no face. */
    public static Look at(Rgb frame, FaceFinder finder, Embedder embedder, int sliderPx) throws DemoException {
        FaceFinder.Face face = finder.largest(frame);
        if (face == null) {
            return null;
        }
        Sidecar model = embedder.sidecar;
        Rgb aligned = Crops.aligned(Crops.loose(frame, face.landmarks), model.template, model.templatePx);
        Rgb seen = Crops.seen(aligned, sliderPx, model.inputPx);
        Quality quality = Quality.of(face.eyeDistance(), aligned, model.inputPx);
        return new Look(face, seen, quality, embedder.embed(seen));
    }
}
