"""How a training job is started: the job file, its DeepSpeed configuration, the launchers and the processes."""
