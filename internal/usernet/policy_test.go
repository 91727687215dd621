package usernet

import (
	"net/netip"
	"testing"
)

func TestDenied(t *testing.T) {
	for _, a := range []string{
		"0.0.0.0", "127.0.0.1", "127.255.255.255", "169.254.0.1", "224.0.0.251", "255.255.255.255", "168.63.129.16",
		"::", "::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "fe80::1", "ff02::fb", "fd00:ec2::254",
	} {
		if !deniedAlways(netip.MustParseAddr(a)) {
			t.Errorf("%s is allowed", a)
		}
	}
	for _, a := range []string{"1.1.1.1", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "2001:db8::1", "fd00::1", "64:ff9b::101:101"} {
		if deniedAlways(netip.MustParseAddr(a)) {
			t.Errorf("%s is denied", a)
		}
	}
}

func TestResolvConf(t *testing.T) {
	const callers = "# by systemd\nnameserver 127.0.0.53\nnameserver ::1\nsearch example.org\n;x\n\noptions edns0 trust-ad"
	const want = "nameserver 192.0.0.1\nsearch example.org\noptions edns0 trust-ad\n"
	if got := string(ResolvConf([]byte(callers))); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := string(ResolvConf(nil)); got != "nameserver 192.0.0.1\n" {
		t.Errorf("without a file: %q", got)
	}
}
