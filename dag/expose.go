package dag

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"build/parser"
)

// expose records ports. Ranges are spelt out; host addresses and host ports have no meaning in an image and are dropped.
func (l *lowering) expose(d *stage, c *instructions.ExposeCommand) error {
	var ports []string
	for _, word := range c.Ports {
		specs, err := l.lex.ProcessWords(word, d.state.env)
		if err != nil {
			return err
		}
		for _, spec := range specs {
			p, err := parsePorts(spec)
			if err != nil {
				return parser.About(spec, err)
			}
			l.lintPort(c, spec)
			ports = append(ports, p...)
		}
	}
	exposed := make(map[string]struct{}, len(d.state.img.Config.ExposedPorts)+len(ports))
	for p := range d.state.img.Config.ExposedPorts {
		exposed[p] = struct{}{}
	}
	for _, p := range ports {
		exposed[p] = struct{}{}
	}
	d.state.img.Config.ExposedPorts = exposed
	l.record(&d.state, fmt.Sprintf("EXPOSE %v", ports), None)
	return nil
}

// parsePorts reads [ip:][hostport:]port[-port][/proto] and lists the container's ports as port/proto.
func parsePorts(spec string) ([]string, error) {
	host, hostPort, port := splitPort(spec)
	port, proto, _ := strings.Cut(port, "/")
	if port == "" {
		return nil, fmt.Errorf("invalid port: %q: no port specified", spec)
	}
	switch proto = strings.ToLower(proto); proto {
	case "":
		proto = "tcp"
	case "tcp", "udp", "sctp":
	default:
		return nil, fmt.Errorf("invalid port: %q: invalid proto: %s", spec, proto)
	}
	if err := checkAddress(host); err != nil {
		return nil, err
	}
	first, last, err := portRange(port)
	if err != nil {
		return nil, errors.New("invalid containerPort: " + port)
	}
	if hostPort != "" {
		f, t, err := portRange(hostPort)
		if err != nil {
			return nil, errors.New("invalid hostPort: " + hostPort)
		}
		if t-f != last-first && last != first {
			return nil, fmt.Errorf("invalid ranges specified for container and host Ports: %s and %s", port, hostPort)
		}
	}
	out := make([]string, 0, last-first+1)
	for n := first; n <= last; n++ {
		out = append(out, strconv.Itoa(n)+"/"+proto)
	}
	return out, nil
}

// splitPort cuts from the right: an address may contain colons.
func splitPort(spec string) (host, hostPort, port string) {
	rest, port, found := cutLast(spec)
	if !found {
		return "", "", port
	}
	host, hostPort, _ = cutLast(rest)
	return host, hostPort, port
}

func cutLast(s string) (before, after string, found bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return "", s, false
	}
	return s[:i], s[i+1:], true
}

func checkAddress(host string) error {
	if host == "" {
		return nil
	}
	ip := host
	if strings.HasPrefix(ip, "[") {
		inner, ok := strings.CutSuffix(ip[1:], "]")
		if !ok {
			return fmt.Errorf("invalid IP address %v: missing ']'", host)
		}
		ip = inner
	}
	if _, err := netip.ParseAddr(ip); err != nil {
		return errors.New("invalid IP address: " + ip)
	}
	return nil
}

func portRange(s string) (first, last int, err error) {
	from, to, isRange := strings.Cut(s, "-")
	if first, err = portNumber(from); err != nil {
		return 0, 0, err
	}
	if !isRange {
		return first, first, nil
	}
	if last, err = portNumber(to); err != nil {
		return 0, 0, err
	}
	if last < first {
		return 0, 0, errors.New("invalid port range: " + s)
	}
	return first, last, nil
}

func portNumber(s string) (int, error) {
	n, err := strconv.ParseInt(s, 10, 0)
	if err != nil {
		return 0, err
	}
	if n < 0 || n > 65535 {
		return 0, errors.New("value out of range (0-65535)")
	}
	return int(n), nil
}
