"""The service: from records to decisions, to what people see, to a retraining job."""

import os

# One process is one core, by design; replicas are the way to more. The matrix product of the joint rows would otherwise wake
# OpenBLAS's threads, which then spin beside everything else: twice the processor time for nothing. Only numpy reads this, so
# a trainer that inherits the environment keeps its own threads. It must stand before numpy is first imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
