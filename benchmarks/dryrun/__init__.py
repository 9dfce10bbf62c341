"""The engine on a GPU that is not there: real LLM, scheduler, graphs and kernels over tensors without memory."""
