package executor_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"build/executor"
	"build/internal/usernet"
)

// serveNetwork is what a holder does for a step with a private network.
func serveNetwork(ctx context.Context, spec *executor.Spec, log *os.File) (context.Context, func(), error) {
	if spec.Network != executor.NetworkPrivate {
		return ctx, func() {}, nil
	}
	i, err := usernet.NewInterface()
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var g *usernet.Gateway
	spec.Interface = i
	spec.Attach = func(packets *os.File) (err error) {
		if g, err = usernet.Start(packets, log); err == nil {
			go func() {
				<-g.Done()
				cancel(g.Err())
			}()
		}
		return err
	}
	return ctx, func() {
		if g != nil {
			g.Close()
		}
		cancel(nil)
	}, nil
}

func private(s *executor.Spec) { s.Network = executor.NetworkPrivate }
func none(s *executor.Spec)    { s.Network = executor.NetworkNone }

func TestNetworkPrivate(t *testing.T) {
	r := newRootfs(t)
	out := r.sh(t, `
		ls /sys/class/net | tr '\n' ' '; echo
		ip -o addr show eth0 | grep -c 192.0.0.2/29
		ip route | grep -c '^default via 192.0.0.1 dev eth0'
		ip -o addr show lo | grep -c 127.0.0.1/8
		ping -c 1 -W 20 192.0.0.1 > /dev/null && echo gateway answers
		id -u`, private)
	if out != "eth0 lo \n1\n1\n1\ngateway answers\n0\n" {
		t.Errorf("%q", out)
	}
	if out := r.sh(t, "ping -c 1 -W 20 192.0.0.1 > /dev/null && id -u", private, func(s *executor.Spec) { s.Security = executor.Insecure }); out != "0\n" {
		t.Errorf("insecure: %q", out)
	}
}

// TestHostSockets checks which networks keep a step from what listens on this machine alone.
func TestHostSockets(t *testing.T) {
	r := newRootfs(t)
	copyFile(t, buildHelper(t), r.lower+"/bin/syscalls")
	abstract := fmt.Sprintf("@executor-test-%d", os.Getpid())
	var targets []string
	for _, at := range [][2]string{{"tcp", "127.0.0.1:0"}, {"tcp", "[::1]:0"}, {"unix", abstract}} {
		l, err := net.Listen(at[0], at[1])
		if at[1] == "[::1]:0" && err != nil {
			continue // no IPv6 here
		}
		must(t, err)
		defer l.Close()
		targets = append(targets, at[0]+" "+l.Addr().String())
	}
	script := ""
	for _, target := range targets {
		script += "syscalls dial " + target + "\n"
	}
	all := func(s string) string { return strings.Repeat(s+"\n", len(targets)) }
	for _, c := range []struct {
		name   string
		change func(*executor.Spec)
		want   string
	}{
		{"host", func(*executor.Spec) {}, all("connected")},
		{"none", none, all("refused")},
		{"private", private, all("refused")},
	} {
		if out := r.sh(t, script, c.change); out != c.want {
			t.Errorf("%s: %q, want %q", c.name, out, c.want)
		}
	}
	if out := r.sh(t, "syscalls dial tcp 192.0.2.1:80; ip route; ip -6 route", none); out != "unreachable\n" {
		t.Errorf("none: %q", out)
	}
}

// A network whose interface has other values than the caller meant is not made.
func TestInterfaceRefused(t *testing.T) {
	for name, change := range map[string]func(*executor.Spec){
		"no interface":  func(s *executor.Spec) { s.Interface = nil },
		"nobody serves": func(s *executor.Spec) { s.Attach = nil },
		"gateway of another family": func(s *executor.Spec) {
			s.Interface.Addresses[0].Gateway = make([]byte, 16)
		},
	} {
		i, err := usernet.NewInterface()
		must(t, err)
		s := &executor.Spec{
			Args: []string{"x"}, Root: executor.Tree{Dir: "/"}, Network: executor.NetworkPrivate,
			Interface: i, Attach: func(*os.File) error { return nil },
		}
		change(s)
		if err := executor.Run(t.Context(), s, nil, nil, nil); err == nil || !strings.Contains(err.Error(), "check the step") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestGatewayEnds checks that the process that serves a network is gone with the step, and the step with it.
func TestGatewayEnds(t *testing.T) {
	r := newRootfs(t)
	me := holder(t).Pid()
	for name, script := range map[string]string{"a step that ends": "true", "a step that fails": "exit 3", "a step that is killed": "kill -9 $$"} {
		r.reset(t)
		s := r.spec(script)
		private(s)
		run(t, t.Context(), s)
		waitFor(t, "the gateway to be gone after "+name, func() bool { return len(gatewaysOf(me)) == 0 })
	}
	r.reset(t)
	s := r.spec("sleep 300")
	private(s)
	go func() {
		for range 500 {
			if g := gatewaysOf(me); len(g) == 1 {
				if p, err := os.FindProcess(g[0]); err == nil {
					_ = p.Kill()
				}
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	if res := run(t, t.Context(), s); res.err == nil || !strings.Contains(res.err.Error(), "serves the private network") {
		t.Errorf("a step whose network died: %v", res.err)
	}
}

// gatewaysOf returns the gateways among the children of a process.
func gatewaysOf(parent int) (pids []int) {
	dirs, _ := os.ReadDir("/proc")
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		cmdline, _ := os.ReadFile("/proc/" + d.Name() + "/cmdline")
		status, _ := os.ReadFile("/proc/" + d.Name() + "/status")
		if strings.HasPrefix(string(cmdline), "build-gateway") && strings.Contains(string(status), fmt.Sprintf("\nPPid:\t%d\n", parent)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func TestKillPrivate(t *testing.T) {
	for _, victim := range []string{"front", "holder"} {
		t.Run(victim, func(t *testing.T) {
			var gateways []int
			testKillStep(t, victim, private, func(holder int) {
				waitFor(t, "the gateway", func() bool { gateways = gatewaysOf(holder); return len(gateways) == 1 })
				status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", gateways[0]))
				must(t, err)
				for _, want := range []string{"\nCapPrm:\t0000000000000000\n", "\nCapEff:\t0000000000000000\n", "\nNoNewPrivs:\t1\n"} {
					if !strings.Contains(string(status), want) {
						t.Errorf("the gateway has privileges: no %q", want)
					}
				}
			})
			waitFor(t, "the gateway to be gone", func() bool {
				b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", gateways[0]))
				return !strings.HasPrefix(string(b), "build-gateway")
			})
		})
	}
}

// Without namespaces a step would have this machine's network, whatever was asked for.
func TestChrootKeepsNoNetwork(t *testing.T) {
	i, err := usernet.NewInterface()
	must(t, err)
	for _, n := range []executor.Network{executor.NetworkNone, executor.NetworkPrivate} {
		s := &executor.Spec{
			Means: executor.Means{Chroot: true}, Root: executor.Tree{Dir: t.TempDir()}, Args: []string{"x"}, Network: n,
			Interface: i, Attach: func(*os.File) error { return nil },
		}
		if err := executor.Run(t.Context(), s, nil, nil, nil); err == nil || !strings.Contains(err.Error(), "takes a network namespace") {
			t.Errorf("network %d: %v", n, err)
		}
	}
}
