package org.bridgeface.demo;

import android.content.Context;
import android.graphics.Bitmap;
import android.graphics.Canvas;
import android.graphics.Color;
import android.graphics.Paint;
import android.graphics.RectF;
import android.util.AttributeSet;
import android.view.View;
import org.bridgeface.core.FaceFinder;
import org.bridgeface.core.Rgb;

/**
 * Draws the very frame that was looked at, and the face found in it: picture and overlay cannot drift apart, whatever
 * the sensor's orientation. A front camera is shown as a mirror; only the drawing is mirrored.
 */
public final class PreviewView extends View {
    private final Paint line = new Paint(Paint.ANTI_ALIAS_FLAG);
    private final Paint smooth = new Paint(Paint.FILTER_BITMAP_FLAG);
    private Bitmap frame;
    private FaceFinder.Face face;
    private boolean mirrored;

    public PreviewView(Context context, AttributeSet attributes) {
        super(context, attributes);
        line.setStyle(Paint.Style.STROKE);
        line.setStrokeWidth(3 * getResources().getDisplayMetrics().density);
        line.setColor(Color.rgb(134, 239, 172));
    }

    /** image: null clears the view. Pixels live in memory alone. */
    void show(Rgb image, FaceFinder.Face found, boolean mirror) {
        face = found;
        mirrored = mirror;
        if (image == null) {
            frame = null;
        } else {
            if (frame == null || frame.getWidth() != image.width || frame.getHeight() != image.height) {
                frame = Bitmap.createBitmap(image.width, image.height, Bitmap.Config.ARGB_8888);
            }
            frame.setPixels(image.argb(mirror), 0, image.width, 0, 0, image.width, image.height);
        }
        invalidate();
    }

    @Override
    protected void onDraw(Canvas canvas) {
        canvas.drawColor(Color.BLACK);
        if (frame == null) {
            return;
        }
        float scale = Math.min((float) getWidth() / frame.getWidth(), (float) getHeight() / frame.getHeight());
        canvas.translate((getWidth() - frame.getWidth() * scale) / 2, (getHeight() - frame.getHeight() * scale) / 2);
        canvas.scale(scale, scale);
        canvas.drawBitmap(frame, 0, 0, smooth);
        if (face == null) {
            return;
        }
        float left = x(face.box[mirrored ? 2 : 0]), right = x(face.box[mirrored ? 0 : 2]);
        line.setStrokeWidth(3 * getResources().getDisplayMetrics().density / scale);
        canvas.drawRect(new RectF(left, (float) face.box[1], right, (float) face.box[3]), line);
        for (int i = 0; i < 3; i++) {
            canvas.drawCircle(x(face.landmarks[i][0]), (float) face.landmarks[i][1], 2 / scale + 2, line);
        }
    }

    private float x(double value) {
        return (float) (mirrored ? frame.getWidth() - 1 - value : value);
    }
}
