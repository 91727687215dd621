package executor_test

import "os"

const crashVar = "EXECUTOR_TEST_CRASH"

func crashMain() { os.Exit(0) }
