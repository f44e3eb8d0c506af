# Read by llama.cpp's project, see the Makefile: its common library is for its programs alone. Without it, and what it
# needs, compiling takes 3 minutes of CPU; all together took 8.
set(LLAMA_BUILD_COMMON OFF)
