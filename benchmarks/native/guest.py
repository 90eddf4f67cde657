"""Runs under qemu in the ARM Python: MODEL INPUTS.npy OUTPUTS.npy RUNS. One face a call."""

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter

model, inputs, outputs, runs = sys.argv[1:]
interpreter = Interpreter(model_path=model, num_threads=1)
interpreter.allocate_tensors()
fed, given = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
faces, found = np.load(inputs), []
for face in faces:
    interpreter.set_tensor(fed, face[None])
    interpreter.invoke()
    found.append(interpreter.get_tensor(given)[0])
np.save(outputs, np.stack(found))
for _ in range(int(runs)):
    interpreter.invoke()
