package org.bridgeface.demo;

import android.content.Context;
import android.graphics.ImageFormat;
import android.hardware.camera2.CameraAccessException;
import android.hardware.camera2.CameraCaptureSession;
import android.hardware.camera2.CameraCharacteristics;
import android.hardware.camera2.CameraDevice;
import android.hardware.camera2.CameraManager;
import android.hardware.camera2.CaptureRequest;
import android.hardware.camera2.params.StreamConfigurationMap;
import android.media.Image;
import android.media.ImageReader;
import android.os.Handler;
import android.util.Log;
import android.util.Size;
import android.view.Display;
import android.view.Surface;
import java.util.Collections;
import org.bridgeface.core.Frames;
import org.bridgeface.core.Rgb;

/** Frames of one camera, upright and in RGB, on a background thread; the newest only. */
final class CameraFeed extends CameraDevice.StateCallback implements ImageReader.OnImageAvailableListener {
    interface Listener {
        /** On the background thread. */
        void onFrame(Rgb frame, boolean front);

        /** On the background thread: the camera is gone, or never came. */
        void onLost(CameraFeed feed, String why);
    }

    private static final String TAG = "FaceDemo";
    private static final int WIDTH = 640;
    private static final int HEIGHT = 480;

    private final CameraManager manager;
    private final Handler background;
    private final Listener listener;
    private CameraDevice device;
    private ImageReader reader;
    private boolean front;
    private boolean closed;
    private Display display;
    private int sensor;

    CameraFeed(Context context, Handler background, Listener listener) {
        manager = (CameraManager) context.getSystemService(Context.CAMERA_SERVICE);
        this.background = background;
        this.listener = listener;
    }

    static int cameras(Context context) {
        try {
            return ((CameraManager) context.getSystemService(Context.CAMERA_SERVICE)).getCameraIdList().length;
        } catch (CameraAccessException problem) {
            Log.w(TAG, "the list of cameras cannot be read", problem);
            return 0;
        }
    }

    /** shown: whose rotation each frame follows, as half a turn of the phone is told to nobody. The permission is given. */
    void open(boolean wantFront, Display shown) {
        display = shown;
        try {
            String chosen = null;
            for (String id : manager.getCameraIdList()) {
                Integer facing = manager.getCameraCharacteristics(id).get(CameraCharacteristics.LENS_FACING);
                boolean isFront = facing != null && facing == CameraCharacteristics.LENS_FACING_FRONT;
                if (chosen == null || isFront == wantFront && front != wantFront) {
                    chosen = id;
                    front = isFront;
                }
            }
            if (chosen == null) {
                listener.onLost(CameraFeed.this, "there is no camera");
                return;
            }
            CameraCharacteristics about = manager.getCameraCharacteristics(chosen);
            Integer orientation = about.get(CameraCharacteristics.SENSOR_ORIENTATION);
            sensor = orientation == null ? 0 : orientation;
            Size size = size(about);
            reader = ImageReader.newInstance(size.getWidth(), size.getHeight(), ImageFormat.YUV_420_888, 2);
            reader.setOnImageAvailableListener(this, background);
            manager.openCamera(chosen, this, background);
        } catch (CameraAccessException | SecurityException | IllegalArgumentException problem) {
            Log.w(TAG, "the camera cannot be opened", problem);
            listener.onLost(CameraFeed.this, String.valueOf(problem.getMessage()));
        }
    }

    /** The size nearest to 640 x 480 that the camera gives. */
    private static Size size(CameraCharacteristics about) {
        Size best = new Size(WIDTH, HEIGHT);
        int least = Integer.MAX_VALUE;
        StreamConfigurationMap offers = about.get(CameraCharacteristics.SCALER_STREAM_CONFIGURATION_MAP);
        Size[] sizes = offers == null ? null : offers.getOutputSizes(ImageFormat.YUV_420_888);
        if (sizes == null) {
            throw new IllegalArgumentException("it gives depth only");
        }
        for (Size one : sizes) {
            int off = Math.abs(one.getWidth() - WIDTH) + Math.abs(one.getHeight() - HEIGHT);
            if (off < least) {
                least = off;
                best = one;
            }
        }
        return best;
    }

    @Override
    public synchronized void onOpened(CameraDevice opened) {
        if (closed) {
            opened.close();
            return;
        }
        device = opened;
        try {
            final CaptureRequest.Builder request = opened.createCaptureRequest(CameraDevice.TEMPLATE_PREVIEW);
            request.addTarget(reader.getSurface());
            opened.createCaptureSession(
                    Collections.singletonList(reader.getSurface()),
                    new CameraCaptureSession.StateCallback() {
                        @Override
                        public void onConfigured(CameraCaptureSession session) {
                            repeat(session, request.build());
                        }

                        @Override
                        public void onConfigureFailed(CameraCaptureSession session) {
                            listener.onLost(CameraFeed.this, "the camera refused its settings");
                        }
                    },
                    background);
        } catch (CameraAccessException | IllegalStateException problem) {
            Log.w(TAG, "no session with the camera", problem);
            listener.onLost(CameraFeed.this, String.valueOf(problem.getMessage()));
        }
    }

    private synchronized void repeat(CameraCaptureSession session, CaptureRequest request) {
        if (closed) {
            return;
        }
        try {
            session.setRepeatingRequest(request, null, background);
        } catch (CameraAccessException | IllegalStateException problem) {
            Log.w(TAG, "the camera does not start", problem);
            listener.onLost(CameraFeed.this, String.valueOf(problem.getMessage()));
        }
    }

    @Override
    public void onDisconnected(CameraDevice gone) {
        gone.close();
        close();
        listener.onLost(this, "another app took it");
    }

    @Override
    public void onError(CameraDevice broken, int error) {
        broken.close();
        close();
        listener.onLost(CameraFeed.this, "error " + error);
    }

    @Override
    public void onImageAvailable(ImageReader source) {
        Rgb frame;
        synchronized (this) {
            if (closed) {
                return;
            }
            try (Image image = source.acquireLatestImage()) {
                if (image == null) {
                    return;
                }
                Image.Plane[] planes = image.getPlanes();
                int turn = Frames.turn(sensor, 90 * display.getRotation() / Surface.ROTATION_90, front);
                frame = Frames.upright(
                        image.getWidth(), image.getHeight(), plane(planes[0]), plane(planes[1]), plane(planes[2]), turn);
            }
        }
        listener.onFrame(frame, front);
    }

    private static Frames.Plane plane(Image.Plane plane) {
        return new Frames.Plane(plane.getBuffer(), plane.getRowStride(), plane.getPixelStride());
    }

    synchronized void close() {
        closed = true;
        if (device != null) {
            device.close();
            device = null;
        }
        if (reader != null) {
            reader.close();
            reader = null;
        }
    }
}
