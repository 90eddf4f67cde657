package org.bridgeface.demo;

import android.widget.SeekBar;
import android.widget.TextView;
import org.bridgeface.core.Sidecar;

/** Which resolution the networks see, chosen by hand. */
final class Slider implements SeekBar.OnSeekBarChangeListener {
    /** Read by the background thread. */
    volatile int px;

    private final SeekBar bar;
    private final TextView label;

    Slider(SeekBar bar, TextView label, int position) {
        this.bar = bar;
        this.label = label;
        bar.setMax(Sidecar.slider().length - 1);
        bar.setOnSeekBarChangeListener(this);
        bar.setProgress(position);
        onProgressChanged(bar, position, false);
    }

    int position() {
        return bar.getProgress();
    }

    @Override
    public void onProgressChanged(SeekBar moved, int position, boolean byHand) {
        px = Sidecar.slider()[position];
        label.setText(label.getContext().getString(R.string.resolution, px));
    }

    @Override
    public void onStartTrackingTouch(SeekBar touched) {}

    @Override
    public void onStopTrackingTouch(SeekBar touched) {}
}
