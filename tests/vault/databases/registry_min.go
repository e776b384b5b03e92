//go:build minimal

// Takes the place of Vault's file of this name: the engines of the minimal build, and the two
// databases that the tests lease users from.
package builtinplugins

import (
	dbInflux "github.com/hashicorp/vault/plugins/database/influxdb"
	dbPostgres "github.com/hashicorp/vault/plugins/database/postgresql"
)

func extendAddonPlugins(reg *registry) {
	reg.databasePlugins["influxdb-database-plugin"] = databasePlugin{Factory: dbInflux.New}
	reg.databasePlugins["postgresql-database-plugin"] = databasePlugin{Factory: dbPostgres.New}
}
