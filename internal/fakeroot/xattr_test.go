package fakeroot_test

import (
	"os"
	"os/exec"
	"testing"

	"build/internal/testenv"
)

// buildXattr puts a program into the root that tries to change the record of a file, adds another attribute and lists all.
func buildXattr(t *testing.T, r *root) string {
	t.Helper()
	dir := t.TempDir()
	src := `package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

func main() {
	f := os.Args[1]
	for name, value := range map[string]string{"user.build.owner": "1 1", "user.other": "x"} {
		if err := syscall.Setxattr(f, name, []byte(value), 0); err != nil {
			fmt.Println(name, err)
		}
	}
	buf := make([]byte, 1000)
	n, err := syscall.Listxattr(f, buf)
	if err != nil {
		fmt.Println(err)
	}
	fmt.Println(strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00"))
}
`
	must(t, os.WriteFile(dir+"/main.go", []byte(src), 0o644))
	cmd := exec.Command(testenv.Tool(t, "go"), "build", "-o", dir+"/xattr", dir+"/main.go")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOTOOLCHAIN=local")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	copyProgram(t, dir+"/xattr", r.lower+"/bin/xattr")
	return "xattr"
}
