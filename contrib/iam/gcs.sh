PROJECT=$(gcloud config get-value project)
gcloud storage buckets update gs://my-events --uniform-bucket-level-access
gcloud iam roles create jobsBackup --project=$PROJECT --title=jobs-backup \
  --permissions=storage.objects.create,storage.objects.get
gcloud iam service-accounts create jobs-backup --project=$PROJECT
gcloud storage buckets add-iam-policy-binding gs://my-events --member=serviceAccount:jobs-backup@$PROJECT.iam.gserviceaccount.com \
  --role=projects/$PROJECT/roles/jobsBackup
