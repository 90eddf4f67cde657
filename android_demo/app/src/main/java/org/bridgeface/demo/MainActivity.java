package org.bridgeface.demo;

import android.Manifest;
import android.app.Activity;
import android.content.Intent;
import android.content.pm.PackageManager;
import android.graphics.Bitmap;
import android.graphics.drawable.BitmapDrawable;
import android.net.Uri;
import android.os.Bundle;
import android.os.Handler;
import android.os.HandlerThread;
import android.provider.Settings;
import android.util.Log;
import android.view.View;
import android.view.WindowManager;
import android.widget.Button;
import android.widget.ImageView;
import android.widget.SeekBar;
import android.widget.TextView;
import java.util.List;
import org.bridgeface.core.CameraGate;
import org.bridgeface.core.DemoException;
import org.bridgeface.core.Look;
import org.bridgeface.core.Request;
import org.bridgeface.core.Rgb;

/**
 * The one screen. Frames, networks and people belong to the background thread; views and requests to the main one.
 * `am start --ez benchmark true` measures without a touch; `adb logcat -s FaceBench` reads the figures.
 */
public final class MainActivity extends Activity
        implements CameraFeed.Listener, Dialogs.Listener, View.OnClickListener {
    private static final String TAG = "FaceDemo";
    private static final String BENCH_TAG = "FaceBench";
    private static final String[] KEPT = {"request", "asked", "front", "slider", "status", "measuring"};

    /** The process's: what one screen was asked for is done before the next one reads who is enrolled. */
    private static final Handler BACKGROUND = new Handler(started().getLooper());

    private final Handler main = new Handler();
    private Dialogs dialogs;
    private PreviewView preview;
    private ImageView seen;
    private TextView status;
    private TextView hint;
    private Button gate;

    private Brain brain;
    private volatile String failure;
    private CameraFeed feed;
    private boolean front = true;
    private boolean asked;
    private boolean lost;
    private boolean measuring;
    /** Guarded by this: nothing that was asked for is done once another activity may have taken it up. */
    private boolean paused;
    private Slider slider;
    private volatile Request request = Request.NONE;

    private static HandlerThread started() {
        HandlerThread thread = new HandlerThread("frames");
        thread.start();
        return thread;
    }

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        setContentView(R.layout.main);
        getWindow().addFlags(WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON | WindowManager.LayoutParams.FLAG_SECURE);
        preview = (PreviewView) findViewById(R.id.preview);
        seen = (ImageView) findViewById(R.id.seen);
        status = (TextView) findViewById(R.id.status);
        hint = (TextView) findViewById(R.id.hint);
        gate = (Button) findViewById(R.id.gate);
        for (int id : new int[] {R.id.enrol, R.id.verify, R.id.people, R.id.benchmark, R.id.flip, R.id.gate}) {
            findViewById(id).setOnClickListener(this);
        }
        dialogs = new Dialogs(this, this);
        brain = new Brain(this);
        status.setText(R.string.ready);
        int position = 0;
        if (state != null) {
            request = Request.read(state.getString(KEPT[0]));
            asked = state.getBoolean(KEPT[1]);
            front = state.getBoolean(KEPT[2], true);
            position = state.getInt(KEPT[3]);
            status.setText(state.getCharSequence(KEPT[4]));
        }
        slider = new Slider((SeekBar) findViewById(R.id.slider), (TextView) findViewById(R.id.resolution), position);
        BACKGROUND.post(new Runnable() {
            @Override
            public void run() {
                openModels();
            }
        });
        if (state == null ? getIntent().getBooleanExtra("benchmark", false) : state.getBoolean(KEPT[5])) {
            measure();
        }
    }

    /** On the background thread, so that the screen shows at once. */
    private void openModels() {
        try {
            brain.open();
        } catch (DemoException problem) {
            failure = problem.getMessage();
            tell(problem);
        }
    }

    @Override
    protected void onSaveInstanceState(Bundle state) {
        super.onSaveInstanceState(state);
        state.putString(KEPT[0], request.write());
        state.putBoolean(KEPT[1], asked);
        state.putBoolean(KEPT[2], front);
        state.putInt(KEPT[3], slider.position());
        state.putCharSequence(KEPT[4], status.getText());
        state.putBoolean(KEPT[5], measuring);
    }

    @Override
    protected void onResume() {
        super.onResume();
        lost = false;
        synchronized (this) {
            paused = false;
        }
        startCamera();
    }

    @Override
    protected void onPause() {
        stopCamera();
        synchronized (this) {
            paused = true;
        }
        super.onPause();
    }

    @Override
    protected void onDestroy() {
        // After what is queued: a network that runs must not be closed under its own feet.
        BACKGROUND.post(new Runnable() {
            @Override
            public void run() {
                brain.close();
            }
        });
        super.onDestroy();
    }

    private CameraGate.State gateState() {
        boolean granted = checkSelfPermission(Manifest.permission.CAMERA) == PackageManager.PERMISSION_GRANTED;
        boolean explain = shouldShowRequestPermissionRationale(Manifest.permission.CAMERA);
        return CameraGate.state(granted, asked, explain, CameraFeed.cameras(this), lost);
    }

    private void startCamera() {
        CameraGate.State state = gateState();
        gate.setText(state.button);
        gate.setVisibility(state.button.isEmpty() ? View.GONE : View.VISIBLE);
        if (state != CameraGate.State.OPEN) {
            preview.show(null, null, false);
            status.setText(state.message);
            if (state == CameraGate.State.ASK && !asked) {
                ask();
            }
            return;
        }
        stopCamera();
        feed = new CameraFeed(this, BACKGROUND, this);
        feed.open(front, getWindowManager().getDefaultDisplay());
    }

    private void stopCamera() {
        if (feed != null) {
            feed.close();
            feed = null;
        }
    }

    private void ask() {
        asked = true;
        requestPermissions(new String[] {Manifest.permission.CAMERA}, 1);
    }

    @Override
    public void onRequestPermissionsResult(int code, String[] permissions, int[] results) {
        // The result may be empty, where the question was broken off; onResume follows and looks for itself.
        startCamera();
    }

    @Override
    public void onFrame(final Rgb frame, final boolean mirrored) {
        if (!brain.ready()) {
            if (failure != null && request.kind != Request.Kind.NONE) {
                request = Request.NONE;
                say(failure);
            }
            return;
        }
        Look look = null;
        try {
            look = brain.look(frame, slider.px);
            answer(look);
        } catch (DemoException problem) {
            request = Request.NONE;
            tell(problem);
        }
        final Look found = look;
        main.post(new Runnable() {
            @Override
            public void run() {
                show(frame, found, mirrored);
            }
        });
    }

    /** What the person waits for, on the background thread. */
    private synchronized void answer(Look look) throws DemoException {
        Request waiting = request;
        if (paused || waiting.kind == Request.Kind.NONE) {
            return;
        }
        if (look == null || look.quality.hint() != null) {
            request = waiting.waited();
            if (request.kind == Request.Kind.NONE) {
                say(getString(R.string.timeout));
            }
            return;
        }
        request = Request.NONE;
        say(brain.answer(waiting, look));
    }

    private void show(Rgb frame, Look look, boolean mirrored) {
        if (feed == null) {
            return;
        }
        preview.show(frame, look == null ? null : look.face, mirrored);
        String advice = look == null ? getString(R.string.looking) : look.quality.hint();
        if (!String.valueOf(hint.getText()).equals(advice == null ? "" : advice)) {
            hint.setText(advice == null ? "" : advice);
        }
        if (look != null) {
            int side = look.seen.width;
            Bitmap small = Bitmap.createBitmap(look.seen.argb(mirrored), side, side, Bitmap.Config.ARGB_8888);
            BitmapDrawable pixels = new BitmapDrawable(getResources(), small);
            pixels.setFilterBitmap(false);
            seen.setImageDrawable(pixels);
        }
    }

    @Override
    public void onLost(final CameraFeed gone, String why) {
        Log.w(TAG, "camera lost: " + why);
        main.post(new Runnable() {
            @Override
            public void run() {
                if (feed == gone) {
                    lost = true;
                    stopCamera();
                    startCamera();
                }
            }
        });
    }

    @Override
    public void onClick(View view) {
        int id = view.getId();
        if (id == R.id.gate) {
            CameraGate.State state = gateState();
            lost = false;
            if (state == CameraGate.State.ASK) {
                ask();
            } else if (state == CameraGate.State.DENIED) {
                Uri self = Uri.fromParts("package", getPackageName(), null);
                startActivity(new Intent(Settings.ACTION_APPLICATION_DETAILS_SETTINGS, self));
            } else {
                startCamera();
            }
        } else if (id == R.id.flip) {
            front = !front;
            startCamera();
        } else if (id == R.id.benchmark) {
            measure();
        } else if (id == R.id.enrol) {
            dialogs.askName();
        } else if (id == R.id.verify || id == R.id.people) {
            list(id == R.id.people);
        }
    }

    /** Names are read where they live, on the background thread. */
    private void list(final boolean toDelete) {
        BACKGROUND.post(new Runnable() {
            @Override
            public void run() {
                final List<String> names = brain.names();
                final List<String> labels = brain.labels();
                main.post(new Runnable() {
                    @Override
                    public void run() {
                        if (isFinishing() || isDestroyed()) {
                            return;
                        }
                        if (toDelete) {
                            dialogs.showPeople(names, labels);
                        } else {
                            dialogs.askWhom(names);
                        }
                    }
                });
            }
        });
    }

    @Override
    public void onName(String name) {
        try {
            request = Request.enrol(name);
            status.setText(getString(R.string.waiting_enrol, request.name));
        } catch (DemoException problem) {
            status.setText(problem.getMessage());
        }
    }

    @Override
    public void onClaim(String name) {
        request = Request.verify(name);
        status.setText(R.string.waiting_verify);
    }

    @Override
    public void onDelete(final String name) {
        BACKGROUND.post(new Runnable() {
            @Override
            public void run() {
                try {
                    brain.delete(name);
                    say(getString(R.string.ready));
                } catch (DemoException problem) {
                    tell(problem);
                }
            }
        });
    }

    private void measure() {
        measuring = true;
        status.setText(R.string.measuring);
        BACKGROUND.post(new Runnable() {
            @Override
            public void run() {
                try {
                    report(brain.measure());
                } catch (DemoException problem) {
                    report(null);
                    tell(problem);
                }
            }
        });
    }

    /** figures: null where nothing was measured. On the background thread. */
    private void report(final Brain.Figures figures) {
        if (figures != null) {
            Log.i(BENCH_TAG, figures.json);
            say(figures.words);
        }
        main.post(new Runnable() {
            @Override
            public void run() {
                measuring = false;
                if (figures != null && !isFinishing() && !isDestroyed()) {
                    dialogs.showBenchmark(figures.words, figures.json);
                }
            }
        });
    }

    private void tell(DemoException problem) {
        Log.w(TAG, problem);
        say(problem.getMessage());
    }

    private void say(final String words) {
        main.post(new Runnable() {
            @Override
            public void run() {
                status.setText(words);
            }
        });
    }
}
