package build

import "build/internal/userns"

// Advice is the smallest change that removes an obstacle, for one kind of place.
type Advice struct{ Where, Fix string }

// The places people ask for.
const (
	onDocker     = "Docker"
	onGitLab     = "GitLab"
	onGitHub     = "GitHub"
	onKubernetes = "Kubernetes"
	onHost       = "plain host"
)

// adviceFor lists what removes an obstacle in each kind of place.
func adviceFor(o userns.Obstacle) []Advice {
	switch o {
	case userns.ObstacleSeccomp, userns.ObstacleUnknown:
		return []Advice{
			{onDocker, "docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined"},
			{onGitLab, `config.toml, [runners.docker]: security_opt = ["seccomp:unconfined", "apparmor:unconfined"]`},
			{onGitHub, "job with container: options: --security-opt seccomp=unconfined --security-opt apparmor=unconfined; without container: nothing is needed"},
			{onKubernetes, "securityContext: {seccompProfile: {type: Unconfined}, appArmorProfile: {type: Unconfined}}; or run as root with the default capabilities, which is enough for rung 2"},
			{onHost, "leave the sandbox this shell is in (a container, systemd's RestrictNamespaces= or SystemCallFilter=)"},
		}
	case userns.ObstacleAppArmor:
		return []Advice{
			{onDocker, "docker run --security-opt apparmor=unconfined, with the host's setting as below"},
			{onGitLab, `config.toml, [runners.docker]: security_opt = ["apparmor:unconfined"], with the host's setting as below`},
			{onGitHub, "a step before: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
			{onKubernetes, "appArmorProfile: {type: Unconfined}, with the node's setting as below"},
			{onHost, "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or a profile for this program: /etc/apparmor.d/build with `profile build /path/to/build flags=(unconfined) { userns, }`"},
		}
	case userns.ObstacleSysctl:
		return []Advice{
			{onDocker, "the host's setting, as below"},
			{onGitLab, "the runner host's setting, as below"},
			{onGitHub, "a step before: sudo sysctl -w user.max_user_namespaces=15000 kernel.unprivileged_userns_clone=1"},
			{onKubernetes, "the node's setting, as below"},
			{onHost, "sudo sysctl -w user.max_user_namespaces=15000 (old Debian: kernel.unprivileged_userns_clone=1)"},
		}
	case userns.ObstacleHelper, userns.ObstacleSubID, userns.ObstacleNNP:
		return []Advice{
			{onDocker, "nothing: rung 1 builds the same layers; for real ids: package uidmap in the image, a range in /etc/subuid and /etc/subgid, no --security-opt no-new-privileges"},
			{onGitLab, "as with Docker"},
			{onGitHub, "nothing: runners have both"},
			{onKubernetes, "nothing: rung 1 builds the same layers; for real ids: allowPrivilegeEscalation: true and an image with uidmap, or hostUsers: false and root"},
			{onHost, "sudo apt-get install uidmap; sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER"},
		}
	case userns.ObstacleProc:
		return []Advice{
			{onDocker, "docker run --security-opt systempaths=unconfined"},
			{onGitLab, "the Docker executor has no setting; the namespaces work without a /proc of their own"},
			{onGitHub, "job with container: options: --security-opt systempaths=unconfined"},
			{onKubernetes, "securityContext: {procMount: Unmasked} with hostUsers: false"},
			{onHost, "nothing is masked on a plain host"},
		}
	case userns.ObstacleCaps, userns.ObstacleUser:
		return []Advice{
			{onDocker, "as root, without --cap-drop (rung 2); or as any user with --security-opt seccomp=unconfined (rung 1)"},
			{onGitLab, "an image that runs as root; no cap_drop in config.toml"},
			{onGitHub, "options: --user root"},
			{onKubernetes, "securityContext: {runAsUser: 0} with the default capabilities (Pod Security: baseline); or hostUsers: false"},
			{onHost, "user namespaces (rung 0 or 1), or sudo"},
		}
	}
	return nil
}
