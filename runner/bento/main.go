// Command bento is Bento with the components that Shoal's pipelines need, built from the pinned module in go.mod.
//
// The official image (ghcr.io/warpstreamlabs/bento) does as well; this build exists for machines that cannot pull it,
// for the embedded cluster and for tests. It is never anything else than Bento.
//
// The choice of components weighs what a pipeline on NATS needs against size and build time, which every start of a
// container and every fresh clone pay. Measured on two cores: 33 MB with pure, io, nats and prometheus alone; 48 MB and
// 80 s with this set; 95 MB and 280 s with aws, azure and confluent too. Left out for that reason: the cloud SDKs
// (aws, azure, gcp, confluent), the databases behind large drivers, and everything with cgo. Who needs them points the
// runner image at another Bento (BENTO_IMAGE in runner/Dockerfile) or adds a line here.
package main

import (
	"context"

	"github.com/warpstreamlabs/bento/public/service"

	// Bloblang, processors, buffers, brokers, caches, rate limits; extended adds grok, jsonpath and the other pure ones.
	_ "github.com/warpstreamlabs/bento/public/components/pure"
	_ "github.com/warpstreamlabs/bento/public/components/pure/extended"
	// Files, HTTP client and server, sockets, subprocesses.
	_ "github.com/warpstreamlabs/bento/public/components/io"
	// The reason why this project exists.
	_ "github.com/warpstreamlabs/bento/public/components/nats"
	// Metrics, from which the runner takes its counters.
	_ "github.com/warpstreamlabs/bento/public/components/prometheus"
	// The two other brokers that people move data from and to.
	_ "github.com/warpstreamlabs/bento/public/components/amqp09"
	_ "github.com/warpstreamlabs/bento/public/components/kafka"
)

// version is what `bento --version` prints. It equals the module version in go.mod; tests compare the two.
const version = "1.20.0"

func main() {
	service.RunCLI(context.Background(), service.CLIOptSetVersion(version, "unknown"))
}
