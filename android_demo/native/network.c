#include "network.h"

/* The platform's C library: without an NDK there is no header of it, and two functions are all that is needed. */
void *malloc(size_t bytes);
void free(void *memory);

#define ALIGNMENT 64

struct Network {
    void *memory;
    void *bytes;
    size_t size;
    TfLiteModel *model;
    TfLiteDelegate *delegate;
    TfLiteInterpreter *interpreter;
};

Network *network_reserve(size_t bytes) {
    Network *network = malloc(sizeof(Network));
    if (!network) return NULL;
    *network = (Network){0};
    network->memory = malloc(bytes + ALIGNMENT);
    if (!network->memory) {
        free(network);
        return NULL;
    }
    uintptr_t up = (uintptr_t)network->memory + ALIGNMENT - 1;
    network->bytes = (void *)(up - up % ALIGNMENT);
    network->size = bytes;
    return network;
}

void *network_model(Network *network) { return network->bytes; }

int network_open(Network *network, int threads) {
    network->model = TfLiteModelCreate(network->bytes, network->size);
    if (!network->model) {
        network_close(network);
        return 1;
    }
    TfLiteInterpreterOptions *options = TfLiteInterpreterOptionsCreate();
    TfLiteInterpreterOptionsSetNumThreads(options, threads);
    network->delegate = TfLiteXNNPackDelegateCreate(NULL);
    if (network->delegate) TfLiteInterpreterOptionsAddDelegate(options, network->delegate);
    network->interpreter = TfLiteInterpreterCreate(network->model, options);
    TfLiteInterpreterOptionsDelete(options);
    int failed = !network->interpreter || TfLiteInterpreterAllocateTensors(network->interpreter) != 0 ||
                 TfLiteInterpreterGetInputTensorCount(network->interpreter) != 1;
    if (failed) network_close(network);
    return failed;
}

const TfLiteTensor *network_tensor(const Network *network, int index) {
    if (index == -1) return TfLiteInterpreterGetInputTensor(network->interpreter, 0);
    if (index < 0 || index >= network_outputs(network)) return NULL;
    return TfLiteInterpreterGetOutputTensor(network->interpreter, index);
}

int network_outputs(const Network *network) { return TfLiteInterpreterGetOutputTensorCount(network->interpreter); }

int network_invoke(Network *network) { return TfLiteInterpreterInvoke(network->interpreter); }

void network_close(Network *network) {
    /* The interpreter first: it still calls its delegate and reads the model while it goes. */
    if (network->interpreter) TfLiteInterpreterDelete(network->interpreter);
    if (network->delegate) TfLiteXNNPackDelegateDelete(network->delegate);
    if (network->model) TfLiteModelDelete(network->model);
    free(network->memory);
    free(network);
}
