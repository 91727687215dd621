#include "shapes.h"
#include <cstdio>
#include <stdexcept>

int main(int argc, char **argv) {
  try {
    std::printf("area %s\n", area(std::stod(argc > 1 ? argv[1] : "")).c_str());
  } catch (const std::invalid_argument &) {
    std::puts("not a number");
    return 3;
  }
}
