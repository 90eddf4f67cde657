package org.bridgeface.demo;

import android.content.Context;
import android.security.keystore.KeyGenParameterSpec;
import android.security.keystore.KeyProperties;
import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.security.GeneralSecurityException;
import java.security.KeyStore;
import java.security.ProviderException;
import javax.crypto.KeyGenerator;
import javax.crypto.SecretKey;
import org.bridgeface.core.DemoException;
import org.bridgeface.core.People;
import org.bridgeface.core.Sidecar;
import org.bridgeface.core.Vault;

/** The enrolled people in the app's private folder, encrypted with a key that never leaves the Android Keystore. */
final class PeopleStore {
    private static final String KEYS = "AndroidKeyStore";
    private static final String ALIAS = "people";

    private final File file;

    PeopleStore(Context context) {
        file = new File(context.getNoBackupFilesDir(), "people");
    }

    People load(Sidecar model) throws DemoException {
        if (!file.exists()) {
            return new People(model);
        }
        try (InputStream in = new FileInputStream(file)) {
            return People.read(Vault.open(key(), all(in)), model);
        } catch (IOException problem) {
            throw new DemoException("The file of enrolled people cannot be read: " + problem.getMessage(), problem);
        }
    }

    /** Written beside the old file and renamed: a phone that dies meanwhile keeps the old one. */
    void save(People people) throws DemoException {
        byte[] sealed = Vault.seal(key(), people.write());
        File fresh = new File(file.getPath() + ".new");
        try (FileOutputStream out = new FileOutputStream(fresh)) {
            out.write(sealed);
            out.getFD().sync();
        } catch (IOException problem) {
            throw new DemoException("Nothing was saved: " + problem.getMessage() + ". Free some space.", problem);
        }
        if (!fresh.renameTo(file)) {
            throw new DemoException("Nothing was saved: the file of enrolled people cannot be replaced.");
        }
    }

    /** Everyone, and the key: what a lost copy of the file held cannot be read any more. */
    void deleteAll() throws DemoException {
        try {
            KeyStore keys = KeyStore.getInstance(KEYS);
            keys.load(null);
            keys.deleteEntry(ALIAS);
        } catch (GeneralSecurityException | IOException | ProviderException problem) {
            throw new DemoException("The phone's key store does not answer; restart the phone.", problem);
        }
        if (file.exists() && !file.delete()) {
            throw new DemoException("The file of enrolled people cannot be deleted; clear the app's storage.");
        }
    }

    private static SecretKey key() throws DemoException {
        try {
            KeyStore keys = KeyStore.getInstance(KEYS);
            keys.load(null);
            SecretKey key = (SecretKey) keys.getKey(ALIAS, null);
            if (key != null) {
                return key;
            }
            KeyGenerator generator = KeyGenerator.getInstance(KeyProperties.KEY_ALGORITHM_AES, KEYS);
            generator.init(
                    new KeyGenParameterSpec.Builder(ALIAS, KeyProperties.PURPOSE_ENCRYPT | KeyProperties.PURPOSE_DECRYPT)
                            .setBlockModes(KeyProperties.BLOCK_MODE_GCM)
                            .setEncryptionPaddings(KeyProperties.ENCRYPTION_PADDING_NONE)
                            .setKeySize(256)
                            .build());
            return generator.generateKey();
        } catch (GeneralSecurityException | IOException | ProviderException problem) {
            throw new DemoException("The phone's key store does not answer; restart the phone.", problem);
        }
    }

    static byte[] all(InputStream in) throws IOException {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        byte[] part = new byte[65536];
        for (int read = in.read(part); read > 0; read = in.read(part)) {
            out.write(part, 0, read);
        }
        return out.toByteArray();
    }
}
