package org.bridgeface.core;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/** The enrolled people: names and embeddings of one model, no image. */
public final class People {
    public static final int MOST = 1000;
    public static final int MOST_OF_ONE = 5;
    public static final int LONGEST_NAME = 60;
    private static final int MAGIC = 0x42465031;
    private static final int MOST_NUMBERS = 4096;

    private final String modelSha256;
    private final int dim;
    private final Map<String, List<float[]>> people = new TreeMap<String, List<float[]>>(String.CASE_INSENSITIVE_ORDER);

    public People(Sidecar model) {
        modelSha256 = model.sha256;
        dim = model.dim;
    }

    /** Who fits best, and how well. */
    public static final class Match {
        public final String name;
        public final double score;

        Match(String name, double score) {
            this.name = name;
            this.score = score;
        }
    }

    /** A name as it is stored: trimmed, its spaces made one; a DemoException where none is left or it is too long. */
    public static String checkedName(String text) throws DemoException {
        String name = text == null ? "" : text.replaceAll("[\\p{Cntrl}\\s]+", " ").trim();
        if (name.isEmpty()) {
            throw new DemoException("Type a name first.");
        }
        if (name.length() > LONGEST_NAME) {
            throw new DemoException("That name is longer than " + LONGEST_NAME + " characters; shorten it.");
        }
        return name;
    }

    /** Add a face; the same name again adds another face of that person, of which the last five are kept. */
    public void enrol(String text, float[] embedding) throws DemoException {
        String name = checkedName(text);
        if (embedding.length != dim) {
            throw new IllegalArgumentException(embedding.length + " numbers, " + dim + " are right");
        }
        List<float[]> faces = people.get(name);
        if (faces == null) {
            if (people.size() >= MOST) {
                throw new DemoException(MOST + " people are enrolled already; delete someone first.");
            }
            faces = new ArrayList<float[]>();
            people.put(name, faces);
        }
        faces.add(embedding.clone());
        if (faces.size() > MOST_OF_ONE) {
            faces.remove(0);
        }
    }

    public boolean delete(String name) {
        return people.remove(name) != null;
    }

    public List<String> names() {
        return new ArrayList<String>(people.keySet());
    }

    public int faces(String name) {
        List<float[]> faces = people.get(name);
        return faces == null ? 0 : faces.size();
    }

    /** The best score against one person, or against everyone where name is null; null where nobody is there. */
    public Match match(String name, float[] embedding, String metric) {
        Match best = null;
        for (Map.Entry<String, List<float[]>> entry : people.entrySet()) {
            if (name == null || entry.getKey().equalsIgnoreCase(name)) {
                for (float[] face : entry.getValue()) {
                    double score = Matcher.score(metric, face, embedding);
                    best = best == null || score > best.score ? new Match(entry.getKey(), score) : best;
                }
            }
        }
        return best;
    }

    /** All of it as bytes, to be sealed. */
    public byte[] write() {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        DataOutputStream out = new DataOutputStream(bytes);
        try {
            out.writeInt(MAGIC);
            out.writeUTF(modelSha256);
            out.writeInt(dim);
            out.writeInt(people.size());
            for (Map.Entry<String, List<float[]>> entry : people.entrySet()) {
                out.writeUTF(entry.getKey());
                out.writeInt(entry.getValue().size());
                for (float[] face : entry.getValue()) {
                    for (float value : face) {
                        out.writeFloat(value);
                    }
                }
            }
        } catch (IOException impossible) {
            throw new IllegalStateException(impossible);
        }
        return bytes.toByteArray();
    }

    /** What `write` gave, for the same model: embeddings of two models cannot be compared. */
    public static People read(byte[] data, Sidecar model) throws DemoException {
        People people = new People(model);
        try (DataInputStream in = new DataInputStream(new ByteArrayInputStream(data))) {
            if (in.readInt() != MAGIC) {
                throw damaged(null);
            }
            if (!in.readUTF().equals(model.sha256)) {
                throw new DemoException(
                        "The people enrolled here belong to another model; delete all of them and enrol again.");
            }
            int dim = in.readInt(), count = in.readInt();
            if (dim != model.dim || dim > MOST_NUMBERS || count < 0 || count > MOST) {
                throw damaged(null);
            }
            for (int i = 0; i < count; i++) {
                String name = in.readUTF();
                int faces = in.readInt();
                if (faces < 1 || faces > MOST_OF_ONE) {
                    throw damaged(null);
                }
                for (int k = 0; k < faces; k++) {
                    float[] face = new float[dim];
                    for (int j = 0; j < dim; j++) {
                        face[j] = in.readFloat();
                    }
                    people.enrol(name, face);
                }
            }
            if (in.read() != -1) {
                throw damaged(null);
            }
            return people;
        } catch (IOException problem) {
            throw damaged(problem);
        }
    }

    private static DemoException damaged(Throwable cause) {
        return new DemoException("The file of enrolled people is damaged; delete all of them and enrol again.", cause);
    }
}
