package org.bridgeface.demo;

import android.app.Activity;
import android.app.AlertDialog;
import android.content.DialogInterface;
import android.content.Intent;
import android.text.InputFilter;
import android.text.InputType;
import android.view.WindowManager;
import android.widget.EditText;
import java.util.ArrayList;
import java.util.List;
import org.bridgeface.core.People;

/** The questions that the app asks; each answer goes to one method of its listener. */
final class Dialogs {
    interface Listener {
        void onName(String name);

        /** name: null for anyone. */
        void onClaim(String name);

        /** name: null for everyone. */
        void onDelete(String name);
    }

    private final Activity activity;
    private final Listener listener;

    Dialogs(Activity activity, Listener listener) {
        this.activity = activity;
        this.listener = listener;
    }

    void askName() {
        final EditText field = new EditText(activity);
        field.setHint(R.string.name);
        field.setSingleLine();
        field.setInputType(InputType.TYPE_CLASS_TEXT | InputType.TYPE_TEXT_FLAG_CAP_WORDS
                | InputType.TYPE_TEXT_FLAG_NO_SUGGESTIONS);
        field.setFilters(new InputFilter[] {new InputFilter.LengthFilter(People.LONGEST_NAME)});
        AlertDialog dialog = new AlertDialog.Builder(activity)
                .setTitle(R.string.enrol)
                .setView(field)
                .setNegativeButton(R.string.cancel, null)
                .setPositiveButton(R.string.enrol, new DialogInterface.OnClickListener() {
                    @Override
                    public void onClick(DialogInterface dialog, int which) {
                        listener.onName(field.getText().toString());
                    }
                })
                .create();
        dialog.getWindow().setSoftInputMode(WindowManager.LayoutParams.SOFT_INPUT_STATE_VISIBLE);
        dialog.show();
    }

    void askWhom(final List<String> names) {
        List<String> choices = new ArrayList<String>();
        choices.add(activity.getString(R.string.anyone));
        choices.addAll(names);
        new AlertDialog.Builder(activity)
                .setTitle(R.string.whom)
                .setItems(choices.toArray(new String[0]), new DialogInterface.OnClickListener() {
                    @Override
                    public void onClick(DialogInterface dialog, int which) {
                        listener.onClaim(which == 0 ? null : names.get(which - 1));
                    }
                })
                .show();
    }

    void showPeople(final List<String> names, List<String> shown) {
        AlertDialog.Builder builder = new AlertDialog.Builder(activity).setTitle(R.string.people);
        if (names.isEmpty()) {
            builder.setMessage(R.string.nobody);
        } else {
            builder.setItems(shown.toArray(new String[0]), new DialogInterface.OnClickListener() {
                @Override
                public void onClick(DialogInterface dialog, int which) {
                    confirm(names.get(which), names.get(which));
                }
            });
        }
        builder.setNegativeButton(R.string.cancel, null)
                .setNeutralButton(R.string.delete_all, new DialogInterface.OnClickListener() {
                    @Override
                    public void onClick(DialogInterface dialog, int which) {
                        confirm(null, activity.getString(R.string.anyone));
                    }
                })
                .show();
    }

    private void confirm(final String name, String shown) {
        new AlertDialog.Builder(activity)
                .setMessage(activity.getString(R.string.delete_whom, shown))
                .setNegativeButton(R.string.cancel, null)
                .setPositiveButton(R.string.delete, new DialogInterface.OnClickListener() {
                    @Override
                    public void onClick(DialogInterface dialog, int which) {
                        listener.onDelete(name);
                    }
                })
                .show();
    }

    /** A benchmark's figures, which the person may send on by an app of theirs. */
    void showBenchmark(String words, final String json) {
        new AlertDialog.Builder(activity)
                .setTitle(R.string.benchmark)
                .setMessage(words)
                .setNegativeButton(R.string.cancel, null)
                .setPositiveButton(R.string.share, new DialogInterface.OnClickListener() {
                    @Override
                    public void onClick(DialogInterface dialog, int which) {
                        Intent send = new Intent(Intent.ACTION_SEND).setType("application/json");
                        activity.startActivity(Intent.createChooser(send.putExtra(Intent.EXTRA_TEXT, json), null));
                    }
                })
                .show();
    }
}
