"""dSFT and dDPO: what a training job is, how it is launched, and the artifact that it leaves."""
