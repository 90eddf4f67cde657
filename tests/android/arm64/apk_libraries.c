/* LITERT GLUE MODEL INPUTS OUTPUTS: embed faces by the two libraries of the APK, called as ART calls them.
   INPUTS holds the bytes of one face after the other; OUTPUTS gets the embeddings. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <jni.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "elf_load.h"

/* Android's code keeps its stack guard at a place of the thread that is glibc's; this holds the place free. */
static __thread volatile char guard[256];

/* An array as the glue sees it through JNI. */
typedef struct {
    jsize length;
    void *data;
} Array;

static jsize length(JNIEnv *env, jarray array) { return ((Array *)array)->length; }

static void get_bytes(JNIEnv *env, jbyteArray array, jsize from, jsize count, jbyte *to) {
    memcpy(to, (jbyte *)((Array *)array)->data + from, (size_t)count);
}

static void set_bytes(JNIEnv *env, jbyteArray array, jsize at, jsize count, const jbyte *from) {
    memcpy((jbyte *)((Array *)array)->data + at, from, (size_t)count);
}

static jintArray new_ints(JNIEnv *env, jsize count) {
    Array *array = malloc(sizeof *array);
    *array = (Array){count, calloc((size_t)count, sizeof(jint))};
    return (jintArray)array;
}

static void set_ints(JNIEnv *env, jintArray array, jsize at, jsize count, const jint *from) {
    memcpy((jint *)((Array *)array)->data + at, from, (size_t)count * sizeof(jint));
}

static jobject get_object(JNIEnv *env, jobjectArray array, jsize at) {
    return ((jobject *)((Array *)array)->data)[at];
}

static void delete_reference(JNIEnv *env, jobject object) {}

static jstring new_string(JNIEnv *env, const char *text) { return (jstring)strdup(text); }

/* What Android's C library has and glibc has not, or has by another name. */
static char streams[3 * 152];
static int *error_place(void) { return &errno; }
static int log_text(int level, const char *tag, const char *text, ...) { return 1; }
static int no_property(const char *name, char *value) {
    if (value) value[0] = 0;
    return 0;
}
static void *nothing(void) { return NULL; }
static char *find_letter(const char *text, int letter, size_t room) { return strchr(text, letter); }
static size_t count_letters(const char *text, size_t room) { return strlen(text); }
static ssize_t write_all(int file, const void *data, size_t bytes, size_t room) { return write(file, data, bytes); }
static char *error_text(int code, char *buffer, size_t room) { return strerror_r(code, buffer, room); }

static const struct {
    const char *name;
    void *is;
} android[] = {
    {"__errno", error_place}, {"__sF", streams}, {"__android_log_print", log_text}, {"__android_log_write", log_text},
    {"__android_log_vprint", log_text}, {"android_set_abort_message", nothing}, {"__system_property_get", no_property},
    {"__system_property_find", nothing}, {"__strchr_chk", find_letter}, {"__strlen_chk", count_letters},
    {"__write_chk", write_all}, {"__gnu_strerror_r", error_text},
};

static void *fallback(const char *name) {
    for (size_t i = 0; i < sizeof android / sizeof *android; i++)
        if (!strcmp(android[i].name, name)) return android[i].is;
    return dlsym(RTLD_DEFAULT, name);
}

static Array read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) exit(4);
    long bytes = ftell(file);
    Array array = {(jsize)bytes, malloc((size_t)bytes)};
    rewind(file);
    if (fread(array.data, 1, (size_t)bytes, file) != (size_t)bytes) exit(4);
    fclose(file);
    return array;
}

int main(int count, char **arguments) {
    if (count != 6) return 2;
    guard[0] = 1;
    elf_load(arguments[1], fallback);
    Library *glue = elf_load(arguments[2], fallback);
    struct JNINativeInterface_ table = {
        .GetArrayLength = length, .GetByteArrayRegion = get_bytes, .SetByteArrayRegion = set_bytes,
        .NewIntArray = new_ints, .SetIntArrayRegion = set_ints, .GetObjectArrayElement = get_object,
        .DeleteLocalRef = delete_reference, .NewStringUTF = new_string,
    };
    const struct JNINativeInterface_ *functions = &table;
    JNIEnv *env = (JNIEnv *)&functions;
#define GLUE(name) elf_symbol(glue, "Java_org_bridgeface_core_LiteRt_" #name)
    jstring (*version)(JNIEnv *, jclass) = GLUE(version);
    jlong (*open_model)(JNIEnv *, jclass, jbyteArray, jint) = GLUE(open);
    jintArray (*shape)(JNIEnv *, jclass, jlong, jint) = GLUE(shape);
    jint (*run)(JNIEnv *, jclass, jlong, jbyteArray, jobjectArray) = GLUE(run);
    void (*close_model)(JNIEnv *, jclass, jlong) = GLUE(close);
    if (!version || !open_model || !shape || !run || !close_model) return 5;

    Array garbage = {16, "no model at all!"};
    if (open_model(env, NULL, (jbyteArray)&garbage, 1)) return 6;
    Array model = read_file(arguments[3]), inputs = read_file(arguments[4]);
    jlong network = open_model(env, NULL, (jbyteArray)&model, 1);
    if (!network) return 7;
    jint *in = ((Array *)shape(env, NULL, network, -1))->data, *out = ((Array *)shape(env, NULL, network, 0))->data;
    if (shape(env, NULL, network, 1)) return 8;
    jsize face = in[1] * in[2] * in[3] * in[4] * (in[0] == 1 ? 4 : 1);
    Array input = {face, NULL}, output = {out[1] * out[2] * 4, malloc((size_t)(out[1] * out[2]) * 4)};
    jobject row[] = {(jobject)&output};
    Array outputs = {1, row};
    FILE *file = fopen(arguments[5], "wb");
    if (!file) return 4;
    for (jsize at = 0; at + face <= inputs.length; at += face) {
        input.data = (char *)inputs.data + at;
        if (run(env, NULL, network, (jbyteArray)&input, (jobjectArray)&outputs)) return 9;
        fwrite(output.data, 1, (size_t)output.length, file);
    }
    fclose(file);
    close_model(env, NULL, network);
    printf("%s\n", (char *)version(env, NULL));
    fflush(stdout);
    /* Not through exit: Android's destructors would meet glibc's. */
    _exit(0);
}
