# Read by llama.cpp's project, see the Makefile: its common library takes as long to compile as all the rest, and is for
# its programs alone.
set(LLAMA_BUILD_COMMON OFF)
