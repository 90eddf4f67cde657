/* org.bridgeface.core.LiteRt: bytes of Java arrays to and from the network's tensors. */
#include <jni.h>

#include "network.h"

#define METHOD(name) JNICALL Java_org_bridgeface_core_LiteRt_##name
#define NETWORK(handle) ((Network *)(intptr_t)(handle))

/* Statuses of run() beside those of TfLiteInterpreterInvoke, which are positive. */
enum { OK = 0, WRONG_INPUT = -2, WRONG_OUTPUT = -3 };

JNIEXPORT jstring METHOD(version)(JNIEnv *env, jclass type) { return (*env)->NewStringUTF(env, TfLiteVersion()); }

JNIEXPORT jlong METHOD(open)(JNIEnv *env, jclass type, jbyteArray model, jint threads) {
    jsize bytes = (*env)->GetArrayLength(env, model);
    Network *network = network_reserve((size_t)bytes);
    if (!network) return 0;
    (*env)->GetByteArrayRegion(env, model, 0, bytes, network_model(network));
    return network_open(network, threads) ? 0 : (jlong)(intptr_t)network;
}

JNIEXPORT jintArray METHOD(shape)(JNIEnv *env, jclass type, jlong handle, jint index) {
    const TfLiteTensor *tensor = network_tensor(NETWORK(handle), index);
    if (!tensor) return NULL;
    int32_t sizes = TfLiteTensorNumDims(tensor);
    jintArray shape = (*env)->NewIntArray(env, sizes + 1);
    if (!shape) return NULL;
    jint value = TfLiteTensorType(tensor);
    (*env)->SetIntArrayRegion(env, shape, 0, 1, &value);
    for (int32_t i = 0; i < sizes; i++) {
        value = TfLiteTensorDim(tensor, i);
        (*env)->SetIntArrayRegion(env, shape, i + 1, 1, &value);
    }
    return shape;
}

JNIEXPORT jint METHOD(run)(JNIEnv *env, jclass type, jlong handle, jbyteArray input, jobjectArray outputs) {
    Network *network = NETWORK(handle);
    const TfLiteTensor *fed = network_tensor(network, -1);
    jsize bytes = (*env)->GetArrayLength(env, input);
    if ((size_t)bytes != TfLiteTensorByteSize(fed)) return WRONG_INPUT;
    (*env)->GetByteArrayRegion(env, input, 0, bytes, TfLiteTensorData(fed));
    int status = network_invoke(network);
    if (status) return status;
    jsize wanted = (*env)->GetArrayLength(env, outputs);
    for (jsize i = 0; i < wanted; i++) {
        const TfLiteTensor *given = network_tensor(network, i);
        jbyteArray output = (*env)->GetObjectArrayElement(env, outputs, i);
        if (!given || !output) return WRONG_OUTPUT;
        jsize room = (*env)->GetArrayLength(env, output);
        if ((size_t)room != TfLiteTensorByteSize(given)) return WRONG_OUTPUT;
        (*env)->SetByteArrayRegion(env, output, 0, room, TfLiteTensorData(given));
        (*env)->DeleteLocalRef(env, output);
    }
    return OK;
}

JNIEXPORT void METHOD(close)(JNIEnv *env, jclass type, jlong handle) { network_close(NETWORK(handle)); }
