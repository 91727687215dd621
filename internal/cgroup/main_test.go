package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The processes that are limited are this test program again, told by a variable what to do and how many files of groups it has
// to enter: from descriptor 3 on.
const (
	helperVar = "CGROUP_TEST_HELPER"
	enterVar  = "CGROUP_TEST_ENTER"
)

func TestMain(m *testing.M) {
	if what := os.Getenv(helperVar); what != "" {
		n, _ := strconv.Atoi(os.Getenv(enterVar))
		for fd := 3; fd < 3+n; fd++ {
			if _, err := syscall.Write(fd, []byte("0")); err != nil {
				fmt.Println("enter:", err)
				os.Exit(9)
			}
		}
		os.Unsetenv(enterVar)
		os.Exit(help(what))
	}
	os.Exit(m.Run())
}

func help(what string) int {
	verb, arg, _ := strings.Cut(what, " ")
	n, _ := strconv.Atoi(arg)
	switch verb {
	case "eat": // MiB
		held := make([]byte, n<<20)
		for i := 0; i < len(held); i += 4096 {
			held[i] = 1
		}
		fmt.Println("ate", len(held)>>20)
	case "fork": // so many at a time; says how many it got
		got := 0
		for range n {
			if c := child("sleep"); c.Start() == nil {
				got++
				defer c.Process.Kill()
			}
		}
		fmt.Println("got", got)
	case "spin": // for so many milliseconds of real time; says how much of the CPU it got
		for end := time.Now().Add(time.Duration(n) * time.Millisecond); time.Now().Before(end); {
		}
		var u syscall.Rusage
		syscall.Getrusage(syscall.RUSAGE_SELF, &u)
		fmt.Println("used", (time.Duration(u.Utime.Nano()) + time.Duration(u.Stime.Nano())).Milliseconds())
	case "cat":
		b, err := os.ReadFile(arg)
		fmt.Print(string(b))
		if err != nil {
			return 1
		}
	case "cpus":
		fmt.Println(CPUs())
	case "tree": // processes that outlive this one
		for range 3 {
			child("sleep").Start()
		}
		fmt.Println("planted")
	case "open": // Groups, say "ready", hold them until killed
		return helpOpen()
	case "holder": // starts a process inside of the group of descriptor 3, and one that enters by descriptor 4
		for _, way := range []*syscall.SysProcAttr{{UseCgroupFD: true, CgroupFD: 3}, nil} {
			c := child("cat /proc/self/cgroup")
			c.SysProcAttr, c.Stdout, c.Stderr = way, os.Stdout, os.Stdout
			if way == nil {
				c.ExtraFiles = []*os.File{os.NewFile(4, "procs")}
				c.Env = append(c.Env, enterVar+"=1")
			}
			if err := c.Run(); err != nil {
				fmt.Println(err)
				return 1
			}
		}
	case "tests":
		return helpTests(arg)
	case "sleep":
		time.Sleep(time.Hour)
	}
	return 0
}

// helpOpen is a build that is killed.
func helpOpen() int {
	g, err := Open(Limits{Pids: 50})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	group, err := g.New()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	if err := inGroup(group, "sleep").Start(); err != nil {
		fmt.Println(err)
		return 1
	}
	for len(words(group.nodes[0].dir.Name()+"/cgroup.procs")) == 0 {
		time.Sleep(time.Millisecond)
	}
	fmt.Println("ready", group.nodes[0].dir.Name())
	time.Sleep(time.Hour)
	return 0
}

// helpTests runs one test in another place or as another user.
func helpTests(name string) int {
	cmd := exec.Command("/proc/self/exe", "-test.v", "-test.run", "^"+name+"$")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	// This process stays out of the way: where the test has to be alone in its group, exec takes its place.
	err := syscall.Exec(cmd.Path, cmd.Args, []string{nestedVar + "=1"})
	fmt.Println(err)
	return 1
}

// nestedVar is set for a test that another one has started where it can run.
const nestedVar = "CGROUP_TEST_NESTED"

func child(what string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{helperVar + "=" + what, "GOMAXPROCS=1", "GORACE=" + os.Getenv("GORACE")}
	return cmd
}

// inGroup starts a helper the way executor starts a step.
func inGroup(g *Group, what string) *exec.Cmd {
	cmd := child(what)
	procs := g.Procs()
	if dir := g.Dir(); dir != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		procs = procs[:len(procs)-1]
	}
	cmd.ExtraFiles = procs
	cmd.Env = append(cmd.Env, enterVar+"="+strconv.Itoa(len(procs)))
	return cmd
}
