#!/bin/bash
# Runs at the first boot of a host of an Auto Scaling group: has AWX deploy it, and tells the group when its engines serve.
# Until then the group's hook keeps it out of service; after the hook's time the group terminates it and launches another one.
set -euo pipefail
exec > >(logger --tag stack-join) 2>&1

region=@region@ group=@group@ hook=@hook@ parameter=@parameter@
callback=@callback@
ports=(@ports@)
end=$((SECONDS + @timeout_s@))

if ! command -v aws > /dev/null || ! command -v curl > /dev/null; then
  apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends awscli curl
fi
token=$(curl --noproxy '*' -fsS -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 300' http://169.254.169.254/latest/api/token)
instance=$(curl --noproxy '*' -fsS -H "X-aws-ec2-metadata-token: $token" http://169.254.169.254/latest/meta-data/instance-id)

# By a file and not by arguments, which everyone on the host may read.
umask 077
body=$(mktemp)
trap 'rm -f "$body"' EXIT
{ printf 'host_config_key='; aws ssm get-parameter --region "$region" --name "$parameter" --with-decryption --query Parameter.Value --output text; } > "$body"

# AWX may be away, its inventory may not know the host yet, or a job of this host may be running.
until curl -fsS --max-time 60 --data "@$body" "$callback"; do
  [ "$SECONDS" -lt "$end" ] || { echo "AWX did not accept the callback in time"; exit 1; }
  sleep 30
done

for port in "${ports[@]}"; do
  until curl --noproxy '*' -fsS --max-time 5 -o /dev/null "http://127.0.0.1:$port/health" 2> /dev/null; do
    [ "$SECONDS" -lt "$end" ] || { echo "the engine at port $port does not serve in time"; exit 1; }
    sleep 10
  done
done
echo "the engines serve"
aws autoscaling complete-lifecycle-action --region "$region" --auto-scaling-group-name "$group" --lifecycle-hook-name "$hook" \
  --instance-id "$instance" --lifecycle-action-result CONTINUE
