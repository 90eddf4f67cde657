/* The clock on a phone: MODEL INPUTS RUNS XNNPACK(0|1), JSON on stdout. Built without the NDK: it declares what it uses
 * of Android's C library and of TensorFlow Lite's stable C interface. One thread; one face a call. */
typedef unsigned long size_t;
typedef struct FILE FILE;
struct timespec { long seconds, nanoseconds; };
int printf(const char *, ...);
int atoi(const char *);
void *malloc(size_t);
FILE *fopen(const char *, const char *);
int fseek(FILE *, long, int);
long ftell(FILE *);
size_t fread(void *, size_t, size_t, FILE *);
int fclose(FILE *);
int fflush(FILE *);
void _exit(int);
int clock_gettime(int, struct timespec *);
void qsort(void *, size_t, size_t, int (*)(const void *, const void *));
void __libc_init(void *, void (*)(void), int (*)(int, char **, char **), const void *);

typedef struct Model Model;
typedef struct Options Options;
typedef struct Interpreter Interpreter;
typedef struct Tensor Tensor;
const char *TfLiteVersion(void);
Model *TfLiteModelCreate(const void *, size_t);
Options *TfLiteInterpreterOptionsCreate(void);
void TfLiteInterpreterOptionsSetNumThreads(Options *, int);
void TfLiteInterpreterOptionsAddDelegate(Options *, void *);
Interpreter *TfLiteInterpreterCreate(const Model *, const Options *);
int TfLiteInterpreterAllocateTensors(Interpreter *);
int TfLiteInterpreterInvoke(Interpreter *);
Tensor *TfLiteInterpreterGetInputTensor(const Interpreter *, int);
size_t TfLiteTensorByteSize(const Tensor *);
int TfLiteTensorCopyFromBuffer(Tensor *, const void *, size_t);
void *TfLiteXNNPackDelegateCreate(const void *);

static double now(void) {
  struct timespec at;
  clock_gettime(1 /* monotonic */, &at);
  return at.seconds + 1e-9 * at.nanoseconds;
}

static void fail(const char *what) {
  printf("{\"error\":\"%s\"}\n", what);
  fflush(0);
  _exit(2);
}

static char *read_whole(const char *path, size_t *bytes) {
  FILE *file = fopen(path, "rb");
  if (!file) fail("a file that was pushed cannot be opened");
  fseek(file, 0, 2);
  *bytes = ftell(file);
  fseek(file, 0, 0);
  char *memory = malloc(*bytes + 64);
  memory += 64 - ((size_t)memory & 63); /* models are read at multiples of 64 */
  if (fread(memory, 1, *bytes, file) != *bytes) fail("a file that was pushed cannot be read");
  fclose(file);
  return memory;
}

static int by_size(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

static int run(int count, char **words, char **environment) {
  if (count != 5) fail("usage: phone MODEL INPUTS RUNS XNNPACK");
  size_t model_bytes, bytes;
  char *model = read_whole(words[1], &model_bytes), *faces = read_whole(words[2], &bytes);
  int runs = atoi(words[3]);
  Options *options = TfLiteInterpreterOptionsCreate();
  TfLiteInterpreterOptionsSetNumThreads(options, 1);
  /* This interface does not apply XNNPACK by itself, and without it the network runs several times slower. */
  if (atoi(words[4])) TfLiteInterpreterOptionsAddDelegate(options, TfLiteXNNPackDelegateCreate(0));
  Interpreter *interpreter = TfLiteInterpreterCreate(TfLiteModelCreate(model, model_bytes), options);
  if (!interpreter || TfLiteInterpreterAllocateTensors(interpreter)) fail("the runtime refuses the model");
  Tensor *input = TfLiteInterpreterGetInputTensor(interpreter, 0);
  size_t face = TfLiteTensorByteSize(input), held = bytes / face;
  if (!held) fail("the inputs are shorter than one face");
  double *seconds = malloc(sizeof(double) * (runs + 1)), began = 0;
  for (int i = -runs / 10 - 1; i < runs; i++) { /* negative: warm-up */
    double start = now();
    if (!i) began = start;
    TfLiteTensorCopyFromBuffer(input, faces + (size_t)(i < 0 ? 0 : i % held) * face, face);
    if (TfLiteInterpreterInvoke(interpreter)) fail("a call failed");
    if (i >= 0) seconds[i] = now() - start;
  }
  double whole = now() - began;
  qsort(seconds, runs, sizeof(double), by_size);
  printf("{\"tflite\":\"%s\",\"runs\":%d,\"faces_per_second\":%.1f,\"p50_ms\":%.5f,\"p95_ms\":%.5f}\n", TfLiteVersion(),
         runs, runs / whole, 1e3 * seconds[runs / 2], 1e3 * seconds[(int)(runs * .95)]);
  fflush(0);
  _exit(0); /* without the runtime's destructors, which some phones crash in */
  return 0;
}

static const void *nothing[6];
__attribute__((visibility("default"))) void entered(void *raw) { __libc_init(raw, 0, run, nothing); }
__asm__(".text\n.globl _start\n_start:\n mov x29, #0\n mov x30, #0\n mov x0, sp\n b entered\n");
