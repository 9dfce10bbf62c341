"""From requests to tokens: scheduling, the steps on the device, sampling, and the thread that runs them."""
