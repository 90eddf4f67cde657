package org.bridgeface.core;

import java.security.GeneralSecurityException;
import java.security.ProviderException;
import java.util.Arrays;
import javax.crypto.Cipher;
import javax.crypto.SecretKey;
import javax.crypto.spec.GCMParameterSpec;

/** AES-GCM around the enrolled people: without the key nothing can be read, and no bit changed unseen. */
public final class Vault {
    private static final byte VERSION = 1;
    private static final int TAG_BITS = 128;
    private static final String CIPHER = "AES/GCM/NoPadding";

    private Vault() {}

    /** Version, length of the nonce, nonce, ciphertext with its tag. The cipher draws the nonce, as Android demands. */
    public static byte[] seal(SecretKey key, byte[] data) throws DemoException {
        try {
            Cipher cipher = Cipher.getInstance(CIPHER);
            cipher.init(Cipher.ENCRYPT_MODE, key);
            byte[] nonce = cipher.getIV();
            cipher.updateAAD(new byte[] {VERSION});
            byte[] closed = cipher.doFinal(data);
            byte[] out = new byte[2 + nonce.length + closed.length];
            out[0] = VERSION;
            out[1] = (byte) nonce.length;
            System.arraycopy(nonce, 0, out, 2, nonce.length);
            System.arraycopy(closed, 0, out, 2 + nonce.length, closed.length);
            return out;
        } catch (GeneralSecurityException | ProviderException problem) {
            throw new DemoException("The phone's key store refused to encrypt; nothing was saved.", problem);
        }
    }

    public static byte[] open(SecretKey key, byte[] sealed) throws DemoException {
        try {
            int nonce = sealed.length < 2 ? 0 : sealed[1];
            if (nonce < 12 || sealed.length < 2 + nonce + TAG_BITS / 8 || sealed[0] != VERSION) {
                throw new GeneralSecurityException("too short or of another version");
            }
            Cipher cipher = Cipher.getInstance(CIPHER);
            byte[] drawn = Arrays.copyOfRange(sealed, 2, 2 + nonce);
            cipher.init(Cipher.DECRYPT_MODE, key, new GCMParameterSpec(TAG_BITS, drawn));
            cipher.updateAAD(new byte[] {VERSION});
            return cipher.doFinal(sealed, 2 + nonce, sealed.length - 2 - nonce);
        } catch (GeneralSecurityException | ProviderException problem) {
            throw new DemoException(
                    "The enrolled people cannot be decrypted (the file or the phone's key changed); delete all of them "
                            + "and enrol again.",
                    problem);
        }
    }
}
