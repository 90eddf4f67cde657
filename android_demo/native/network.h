/* A TFLite model open in LiteRT, without a word of Java: the app's glue and the test programs share it. */
#ifndef BRIDGEFACE_NETWORK_H
#define BRIDGEFACE_NETWORK_H
#include "tflite_c.h"

typedef struct Network Network;

/* Memory for a copy of the model, 64-byte aligned, which network_open then owns; NULL where there is none left. */
Network *network_reserve(size_t bytes);
void *network_model(Network *network);

/* 0 on success; on failure the network is closed. */
int network_open(Network *network, int threads);

/* The input for -1, else an output; NULL where there is none. */
const TfLiteTensor *network_tensor(const Network *network, int index);
int network_outputs(const Network *network);
int network_invoke(Network *network);
void network_close(Network *network);
#endif
