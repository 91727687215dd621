#pragma once
#include <string>
std::string area(double r);
